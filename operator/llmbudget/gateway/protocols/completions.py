"""OpenAI's older text completions: several prompts in one call, each in a context of its own."""

from __future__ import annotations

from typing import Final

from llmbudget.api.provider import Protocol
from llmbudget.decide.bounds import Demand, longest_form
from llmbudget.decide.catalogue import Offer
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.chat import (
    PLAIN,
    REASONS,
    output_limit,
    stream_options,
    written_anew,
)
from llmbudget.gateway.protocols.chat_answers import ChatMeter, usage_of
from llmbudget.gateway.protocols.inputs import measure
from llmbudget.gateway.protocols.openrouter import dearest_provider
from llmbudget.gateway.protocols.operation import CallRequest, Operation

_WRITTEN: Final = ("n", "stream")
_READ: Final = frozenset({"model", "prompt", "stream_options", "max_tokens", *_WRITTEN})
_PLAIN: Final = PLAIN | {"suffix"}
_ALLOWED: Final = _READ | _PLAIN
_REASONS: Final = REASONS | {
    "echo": "it would make the provider return the prompt as output",
    "best_of": "it charges for answers that are not returned: use n",
}


def parse_completion(body: bytes) -> CallRequest:
    """Read a body of POST /v1/completions.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    found = read.read_object(body)
    read.check(found, _ALLOWED, _REASONS, {})
    inputs = measure(found.get("prompt"), "prompt")
    options = stream_options(found, stream=read.flag(found, "stream"))
    choices = read.integer(found, "n", read.MAX_CHOICES) or 1
    _, limit = output_limit(found)
    written = b'"prompt":' + read.serialise(found["prompt"])
    others = read.inside({key: found[key] for key in found if key in _PLAIN})
    head = written_anew(found, _WRITTEN, options)
    demand = Demand(
        prompt_bytes=inputs.tokens + longest_form(others) * inputs.number,
        messages=inputs.number,
        choices=choices * inputs.number,
        limit=limit,
        contexts=inputs.number,
    )

    def write(offer: Offer, most: int) -> bytes:
        # Completions know no other name for the limit, and no tiers.
        upstream = {"model": offer.model.upstream_name, "max_tokens": most} | head
        upstream |= dearest_provider(offer)
        return read.joined(upstream, written, others)

    asked = options.get("include_usage", False)
    return CallRequest(
        read.model_of(found),
        demand,
        write,
        lambda plausible: ChatMeter(plausible, include_usage=asked),
        usage_of,
    )


COMPLETIONS: Final = Operation(
    "/v1/completions",
    "/completions",
    Protocol.OPENAI,
    parse_completion,
    "text_completion",
    fields=_ALLOWED,
)
