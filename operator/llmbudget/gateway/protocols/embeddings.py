"""OpenAI's embeddings and moderations: they read, and write nothing that is charged."""

from __future__ import annotations

from typing import Final

from llmbudget.api.provider import Protocol
from llmbudget.decide.bounds import Demand
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.cost import Usage
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.chat_answers import usage_in
from llmbudget.gateway.protocols.inputs import measure
from llmbudget.gateway.protocols.openrouter import dearest_provider
from llmbudget.gateway.protocols.operation import CallRequest, Operation
from llmbudget.gateway.protocols.sse import NoMeter, as_object, usage_part

_READ: Final = frozenset({"model", "input"})
_EMBEDDING: Final = frozenset({"encoding_format", "dimensions", "user"})
_REASONS: Final = {"stream": "this operation has no streams"}


def parse_embedding(body: bytes) -> CallRequest:
    """Read a body of POST /v1/embeddings.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    return _parse(body, _EMBEDDING)


def parse_moderation(body: bytes) -> CallRequest:
    """Read a body of POST /v1/moderations: text only.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    return _parse(body, frozenset())


def _parse(body: bytes, plain: frozenset[str]) -> CallRequest:
    found = read.read_object(body)
    read.check(found, _READ | plain, _REASONS, {})
    inputs = measure(found.get("input"), "input")
    written = b'"input":' + read.serialise(found["input"])
    others = read.inside({key: found[key] for key in found if key in plain})
    demand = Demand(
        prompt_bytes=inputs.tokens,
        messages=inputs.number,
        choices=0,
        limit=1,
        contexts=inputs.number,
    )

    def write(offer: Offer, most: int) -> bytes:
        head = {"model": offer.model.upstream_name} | dearest_provider(offer)
        return read.joined(head, written, others)

    return CallRequest(read.model_of(found), demand, write, NoMeter, embedding_usage)


def embedding_usage(body: bytes, plausible: int) -> Usage | None:
    """Read the usage of an answer that has no completion tokens."""
    answer = usage_part(body)
    usage = dict(as_object(answer.get("usage")))
    if usage.get("completion_tokens") is None:
        usage["completion_tokens"] = 0
    return usage_in({"usage": usage}, plausible)


EMBEDDINGS: Final = Operation(
    "/v1/embeddings",
    "/embeddings",
    Protocol.OPENAI,
    parse_embedding,
    "embeddings",
    generates=False,
    fields=_READ | _EMBEDDING,
)
MODERATIONS: Final = Operation(
    "/v1/moderations",
    "/moderations",
    Protocol.OPENAI,
    parse_moderation,
    "moderation",
    generates=False,
    fields=_READ,
    by_deployment=False,
)
