"""OpenAI's responses: stateless. Whatever the provider would add by itself is refused.

By default the provider keeps a response for thirty days; here nothing is kept, so `store: false` is
always sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmbudget.api.provider import Protocol
from llmbudget.decide.bounds import Demand, longest_form
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.prices import Usage
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.chat import CHECKS, REASONS, is_openai
from llmbudget.gateway.protocols.fields import HOSTED, MEDIA, STORED, Fields, bad
from llmbudget.gateway.protocols.operation import CallRequest, Operation
from llmbudget.gateway.protocols.sse import TypedMeter, as_object, usage_part
from llmbudget.gateway.protocols.usages import tokens_of

_PLAIN: Final = frozenset(
    {
        *("instructions", "temperature", "top_p", "metadata", "user", "reasoning"),
        *("top_logprobs", "safety_identifier", "prompt_cache_key", "truncation", "max_tool_calls"),
    }
)
_SCHEMAS: Final = frozenset({"tools", "tool_choice", "parallel_tool_calls", "text"})
_READ: Final = frozenset({"model", "input", "stream", "stream_options", "max_output_tokens"})
_APART: Final = _READ | _SCHEMAS | {"store", "service_tier", "include"}
_INCLUDES: Final = ("reasoning.encrypted_content", "message.output_text.logprobs")
_REASONS: Final = REASONS | {
    "background": "a call that goes on by itself can't be metered",
    "prompt": STORED,
    "context_management": STORED,
}
_TOOL: Final = frozenset({"type", "name", "description", "parameters", "strict"})
_ITEMS: Final[Mapping[str, frozenset[str]]] = {
    "message": frozenset({"type", "role", "content", "id", "status", "phase"}),
    "function_call": frozenset({"type", "id", "call_id", "name", "arguments", "status"}),
    "function_call_output": frozenset({"type", "id", "call_id", "output", "status"}),
    "reasoning": frozenset({"type", "id", "summary", "content", "encrypted_content", "status"}),
}
_PARTS: Final[Mapping[str, frozenset[str]]] = {
    "input_text": frozenset({"type", "text"}),
    "output_text": frozenset({"type", "text", "annotations", "logprobs"}),
    "refusal": frozenset({"type", "refusal"}),
    "reasoning_text": frozenset({"type", "text"}),
    "summary_text": frozenset({"type", "text"}),
}
_REASONING: Final = frozenset({"effort", "summary", "generate_summary"})
_IMAGE: Final = frozenset({"type", "image_url", "detail"})


def parse_response(body: bytes) -> CallRequest:
    """Read a body of POST /v1/responses.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    found = read.read_object(body)
    read.check(found, _ALLOWED, _REASONS, _CHECKS)
    items, images, image_bytes = _check_input(found.get("input"))
    stream = read.flag(found, "stream")
    limit = read.integer(found, "max_output_tokens", read.MAX_TOKENS)
    schemas = read.inside({key: found[key] for key in found if key in _SCHEMAS})
    others = read.inside({key: found[key] for key in found if key not in _APART})
    written = b'"input":' + read.serialise(found["input"])
    head = {key: found[key] for key in ("include", "stream_options") if key in found}
    demand = Demand(
        prompt_bytes=_prompt_bytes(found["input"], written, others) - image_bytes,
        messages=items,
        schema_bytes=longest_form(schemas),
        limit=limit,
        images=images,
    )

    def write(offer: Offer, most: int) -> bytes:
        upstream: dict[str, object] = {
            "model": offer.model.upstream_name,
            "max_output_tokens": most,
            "store": False,
        }
        if is_openai(offer):
            upstream["service_tier"] = "default"
        return read.joined(upstream | {"stream": stream} | head, written, schemas, others)

    return CallRequest(read.model_of(found), demand, write, ResponseMeter, response_usage)


def _prompt_bytes(parsed: object, written: bytes, others: bytes) -> int:
    """Measure the prompt. Earlier calls count twice: templates may space their JSON out."""
    items = parsed if isinstance(parsed, list) else []
    calls = [item for item in items if item.get("type") == "function_call"]
    again = longest_form(read.serialise(calls)) if calls else 0
    return longest_form(written) + longest_form(others) + again


def _check_input(value: object) -> tuple[int, int, int]:
    """Check the items; return how many there are, how many images, and the bytes of those."""
    if isinstance(value, str):
        return 1, 0, 0
    images = image_bytes = 0
    items = read.list_at(value, "input")
    for index, item in enumerate(items):
        where = f"input[{index}]"
        found = read.object_at(item, where)
        # A reference to a stored item may leave its type out; a message has a role.
        kind = found.get("type", "message" if "role" in found else "item_reference")
        known = _ITEMS.get(kind) if isinstance(kind, str) else None
        if known is None:
            raise bad(f"{where}.type", HOSTED if str(kind).endswith("_call") else STORED)
        read.only(found, known, where, _REASONS)
        for name in ("content", "output", "summary"):
            parts = found.get(name)
            if not isinstance(parts, str | list | None):
                raise bad(f"{where}.{name}", "it must be a string or a list of parts")
            for part_index, part in enumerate(parts if isinstance(parts, list) else ()):
                size = _check_part(part, f"{where}.{name}[{part_index}]")
                images += size is not None
                image_bytes += size or 0
    return len(items), images, image_bytes


def _check_part(part: object, where: str) -> int | None:
    """Check one part; return the bytes of an image's URL, None for what is text."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "input_image":
        read.only(part, _IMAGE, where, _REASONS)
        return read.image_bytes(part.get("image_url"), f"{where}.image_url")
    known = _PARTS.get(kind) if isinstance(kind, str) else None
    if not isinstance(part, dict) or known is None:
        raise bad(f"{where}.{kind}" if isinstance(kind, str) else where, MEDIA)
    read.only(part, known, where, _REASONS)
    return None


def _check_instructions(value: object) -> None:
    if not isinstance(value, str):
        raise bad("instructions", f"it must be a string: {STORED}")


def _check_reasoning(value: object) -> None:
    reasoning = read.object_at(value, "reasoning")
    read.only(reasoning, _REASONING, "reasoning", _REASONS)


def _check_include(value: object) -> None:
    if not isinstance(value, list) or any(item not in _INCLUDES for item in value):
        raise bad("include", f"only {' and '.join(_INCLUDES)} are allowed")


_CHECKS: Final = {
    **CHECKS,
    "tools": read.tools_check("function", None, _TOOL, _REASONS),
    "include": _check_include,
    "instructions": _check_instructions,
    "reasoning": _check_reasoning,
}


def response_usage(body: bytes, plausible: int) -> Usage | None:
    """Read the usage of a plain answer."""
    return tokens_of(as_object(usage_part(body).get("usage")), plausible)


class ResponseMeter(TypedMeter):
    """Reads the events of a response: the last one carries the whole answer, and its usage."""

    ends = frozenset({"response.completed", "response.incomplete", "response.failed"})

    def _measure(self, document: Fields) -> Usage | None:
        usage = as_object(as_object(document.get("response")).get("usage"))
        return tokens_of(usage, self._plausible)


_ALLOWED: Final = _READ | _SCHEMAS | _PLAIN
RESPONSES: Final = Operation(
    "/v1/responses",
    "/responses",
    Protocol.OPENAI,
    parse_response,
    "chat",
    fields=_ALLOWED | _CHECKS.keys(),
    by_deployment=False,
)
