"""OpenAI's responses. What the provider adds by itself is refused, or counts as whole contexts.

By default the provider keeps a response for thirty days; here nothing is kept, so `store: false` is
sent, but where the caller asks for `store: true` and the provider's resource allows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from llmbudget.api.provider import Protocol
from llmbudget.decide.bounds import Demand, longest_form
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.cost import Units, Usage
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.chat import (
    CHECKS,
    REASONS,
    check_detail,
    service_of,
    usual_of,
    with_service,
)
from llmbudget.gateway.protocols.fields import HOSTED, MEDIA, STORED, Fields, bad
from llmbudget.gateway.protocols.operation import CallRequest, Operation
from llmbudget.gateway.protocols.sse import TypedMeter, as_object, count, usage_part
from llmbudget.gateway.protocols.usages import served, tokens_of

_PLAIN: Final = frozenset(
    {
        *("instructions", "temperature", "top_p", "metadata", "user", "reasoning"),
        *("top_logprobs", "safety_identifier", "prompt_cache_key", "truncation", "max_tool_calls"),
    }
)
_SCHEMAS: Final = frozenset({"tools", "tool_choice", "parallel_tool_calls", "text"})
_READ: Final = frozenset({"model", "input", "stream", "stream_options", "max_output_tokens"})
_HEAD: Final = ("include", "stream_options", "service_tier")
"""Fields that are written anew as they are."""
_APART: Final = _READ | _SCHEMAS | {"store", *_HEAD}
_INCLUDES: Final = (
    *("reasoning.encrypted_content", "message.output_text.logprobs"),
    "web_search_call.action.sources",
)
_REASONS: Final = REASONS | {
    "background": "a call that goes on by itself can't be metered",
    "prompt": STORED,
    "context_management": STORED,
    "file_id": STORED,
}
_SEARCH: Final = ("web_search", "web_search_2025_08_26")
_SEARCH_FIELDS: Final = frozenset(
    {"type", "filters", "user_location", "search_context_size", "external_web_access"}
)
_MORE_ROUNDS: Final = 2
"""How often a response may read everything beside once a tool call: for an attempt beyond
`max_tool_calls`, which OpenAI documents to be ignored, and for the answer."""
_TOOL: Final = frozenset({"type", "name", "description", "parameters", "strict"})
_ITEMS: Final[Mapping[str, frozenset[str]]] = {
    "message": frozenset({"type", "role", "content", "id", "status", "phase"}),
    "function_call": frozenset({"type", "id", "call_id", "name", "arguments", "status"}),
    "function_call_output": frozenset({"type", "id", "call_id", "output", "status"}),
    "reasoning": frozenset({"type", "id", "summary", "content", "encrypted_content", "status"}),
    "web_search_call": frozenset({"type", "id", "status", "action"}),
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
_FILE: Final = frozenset({"type", "filename", "file_data", "file_url"})


def parse_response(body: bytes) -> CallRequest:
    """Read a body of POST /v1/responses.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    found = read.read_object(body)
    read.check(found, _ALLOWED, _REASONS, _CHECKS)
    media = _Media()
    items = _check_input(found.get("input"), media)
    stream = read.flag(found, "stream")
    limit = read.integer(found, "max_output_tokens", read.MAX_TOKENS)
    schemas = read.inside({key: found[key] for key in found if key in _SCHEMAS})
    others = read.inside({key: found[key] for key in found if key not in _APART})
    written = b'"input":' + read.serialise(found["input"])
    searches = _searches(found)
    opaque = "tools" if searches else _named(found, "previous_response_id") or media.opaque
    stores = found.get("store") is True
    demand = Demand(
        prompt_bytes=_prompt_bytes(found["input"], written, others) - media.bytes,
        messages=items,
        schema_bytes=longest_form(schemas),
        limit=limit,
        images=media.images,
        opaque=opaque,
        file=media.file,
        service=service_of(found),
        rounds=searches + _MORE_ROUNDS if searches else 1,
        stored="store" if stores else _named(found, "previous_response_id"),
        kinds=_kinds(media, opaque),
        units=Units(searches=searches) if searches else None,
    )

    model = read.model_of(found)

    def request(head: Fields, demand: Demand) -> CallRequest:
        def write(offer: Offer, most: int) -> bytes:
            upstream: dict[str, object] = {
                "model": offer.model.upstream_name,
                "max_output_tokens": most,
                "store": stores,
            }
            upstream |= {"stream": stream} | with_service(offer, head)
            return read.joined(upstream, written, schemas, others)

        asked = _Asked(searching=bool(searches), service=demand.service)
        return CallRequest(
            model,
            demand,
            write,
            lambda most: ResponseMeter(most, asked),
            lambda answer, most: response_usage(answer, most, asked),
            usual=usual_of(request, head, demand),
        )

    return request({key: found[key] for key in _HEAD if key in found}, demand)


def _prompt_bytes(parsed: object, written: bytes, others: bytes) -> int:
    """Measure the prompt. Earlier calls count twice: templates may space their JSON out."""
    items = parsed if isinstance(parsed, list) else []
    calls = [item for item in items if item.get("type") == "function_call"]
    again = longest_form(read.serialise(calls)) if calls else 0
    return longest_form(written) + longest_form(others) + again


@dataclass(slots=True)
class _Media:
    """What is no text, as far as it was seen."""

    images: int = 0
    bytes: int = 0
    """Bytes of data and URLs, which no model reads as text."""
    opaque: str | None = None
    """Where there is something that only the provider can measure."""
    file: str | None = None
    """Where there is a file."""
    unknown: bool = False
    """Whether there is a file that may be a sound."""


def _kinds(media: _Media, opaque: str | None) -> frozenset[str]:
    """Tell what tokens may be beside text."""
    kinds = read.KINDS_READ if media.images or opaque else read.KINDS
    return kinds | read.KINDS_HEARD if media.unknown else kinds


def _check_input(value: object, media: _Media) -> int:
    """Check the items; return how many there are."""
    if isinstance(value, str):
        return 1
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
        if kind == "web_search_call":
            media.opaque = f"{where}.type"
            continue
        for name in ("content", "output", "summary"):
            parts = found.get(name)
            if not isinstance(parts, str | list | None):
                raise bad(f"{where}.{name}", "it must be a string or a list of parts")
            for part_index, part in enumerate(parts if isinstance(parts, list) else ()):
                _check_part(part, f"{where}.{name}[{part_index}]", media)
    return len(items)


def _check_part(part: object, where: str, media: _Media) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "input_image":
        read.only(part, _IMAGE, where, _REASONS)
        check_detail(part, where)
        media.images += 1
        media.bytes += read.image_bytes(part.get("image_url"), f"{where}.image_url")
        return
    if isinstance(part, dict) and kind == "input_file":
        read.only(part, _FILE, where, _REASONS)
        media.file = media.opaque = f"{where}.input_file"
        media.bytes += read.file_bytes(part, where, "file_data", "file_url")
        media.unknown = media.unknown or not read.is_pdf(part)
        return
    known = _PARTS.get(kind) if isinstance(kind, str) else None
    if not isinstance(part, dict) or known is None:
        raise bad(f"{where}.{kind}" if isinstance(kind, str) else where, MEDIA)
    read.only(part, known, where, _REASONS)


def _named(found: Fields, field: str) -> str | None:
    """Give the field's name where it is there."""
    return field if field in found else None


def _check_instructions(value: object) -> None:
    if not isinstance(value, str):
        raise bad("instructions", f"it must be a string: {STORED}")


def _check_reasoning(value: object) -> None:
    reasoning = read.object_at(value, "reasoning")
    read.only(reasoning, _REASONING, "reasoning", _REASONS)


def _check_store(value: object) -> None:
    if not isinstance(value, bool):
        raise bad("store", "it must be true or false")


def _check_include(value: object) -> None:
    if not isinstance(value, list) or any(item not in _INCLUDES for item in value):
        raise bad("include", f"only {' and '.join(_INCLUDES)} are allowed")


def _check_stored(value: object) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= read.MAX_ID:
        raise bad("previous_response_id", f"it must be a string of 1 to {read.MAX_ID} characters")


def _searches(found: Fields) -> int:
    """Count the web searches that a checked request allows: all calls of tools may be some."""
    tools = [as_object(tool) for tool in read.texts(found, "tools")]
    if not any(tool.get("type") in _SEARCH for tool in tools):
        return 0
    most = read.integer(found, "max_tool_calls", read.MAX_SEARCHES)
    if most is None:
        reason = f"with web_search, say how many: a number from 1 to {read.MAX_SEARCHES}"
        raise bad("max_tool_calls", reason)
    return most


_CHECKS: Final = {
    **CHECKS,
    "tools": read.tools_check(
        "function", None, _TOOL, _REASONS, dict.fromkeys(_SEARCH, _SEARCH_FIELDS)
    ),
    "store": _check_store,
    "previous_response_id": _check_stored,
    "include": _check_include,
    "instructions": _check_instructions,
    "reasoning": _check_reasoning,
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for that the answer tells the outcome of."""

    searching: bool = False
    """Whether the provider may search the web."""
    service: str | None = None
    """Service tier."""


_NOTHING: Final = _Asked()


def response_usage(body: bytes, plausible: int, asked: _Asked = _NOTHING) -> Usage | None:
    """Read the usage of a plain answer."""
    return _usage(usage_part(body), plausible, asked)


def _usage(answer: Fields, plausible: int, asked: _Asked) -> Usage | None:
    usage = tokens_of(as_object(answer.get("usage")), plausible)
    usage = served(usage, asked.service, answer.get("service_tier"))
    if usage is None or not asked.searching:
        return usage
    return replace(usage, units=Units(searches=_searched(answer, plausible)))


def _searched(answer: Fields, plausible: int) -> int | None:
    """Tell how many searches are charged: as `tool_usage` says, else all that the answer shows."""
    told = as_object(as_object(answer.get("tool_usage")).get("web_search")).get("num_requests")
    if told is not None:
        return count(told, plausible)
    items = answer.get("output")
    if not isinstance(items, list):
        return None
    return sum(as_object(item).get("type") == "web_search_call" for item in items)


class ResponseMeter(TypedMeter):
    """Reads the events of a response: the last one carries the whole answer, and its usage."""

    ends = frozenset({"response.completed", "response.incomplete", "response.failed"})

    def __init__(self, plausible: int, asked: _Asked = _NOTHING) -> None:
        super().__init__(plausible)
        self._asked = asked

    def _measure(self, document: Fields) -> Usage | None:
        answer = as_object(document.get("response"))
        return _usage(answer, self._plausible, self._asked)


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
