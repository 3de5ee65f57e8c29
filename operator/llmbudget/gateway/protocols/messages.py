"""Anthropic's messages, and the counting of their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmbudget.api.provider import Protocol
from llmbudget.decide.bounds import Demand, longest_form
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.cost import Units, Usage
from llmbudget.decide.vendors import Vendor, vendor_of
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.fields import HOSTED, MEDIA, STORED, Fields, bad
from llmbudget.gateway.protocols.messages_answers import MessageMeter, message_usage
from llmbudget.gateway.protocols.openrouter import dearest_provider
from llmbudget.gateway.protocols.operation import CallRequest, Operation

VERSION: Final = ("anthropic-version", "2023-06-01")
"""Sent with every call; the only version that there is."""
BETAS: Final = frozenset(
    {"prompt-caching-2024-07-31", "fine-grained-tool-streaming-2025-05-14"}
    | {"output-128k-2025-02-19", "token-efficient-tools-2025-02-19"}
)
"""Values of `anthropic-beta` that change nothing of what a call may cost at most."""

_PLAIN: Final = frozenset({"metadata", "stop_sequences", "temperature", "top_k", "top_p"})
_PROMPT: Final = frozenset({"system", "thinking"})
_SCHEMAS: Final = frozenset({"tools", "tool_choice", "output_config"})
"""Fields that are rendered into the prompt in a notation of their own."""
_READ: Final = frozenset({"model", "messages", "max_tokens", "stream"})
_REASONS: Final = {
    "container": HOSTED,
    "mcp_servers": HOSTED,
    "max_uses": "it belongs to web_search",
    "context_management": STORED,
    "inference_geo": "where a model runs changes its price",
    "speed": "the fast mode has other prices",
    "betas": "send them as the header anthropic-beta",
}
_CACHE: Final = frozenset({"type", "ttl"})
_FOR_AN_HOUR: Final = b'"ttl":"1h"'
_BLOCKS: Final[Mapping[str, frozenset[str]]] = {
    "text": frozenset({"type", "text", "citations", "cache_control"}),
    "image": frozenset({"type", "source", "cache_control"}),
    "document": frozenset({"type", "source", "title", "context", "citations", "cache_control"}),
    "search_result": frozenset(
        {"type", "source", "title", "content", "citations", "cache_control"}
    ),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control", "caller"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
    "server_tool_use": frozenset({"type", "id", "name", "input", "cache_control", "caller"}),
    "web_search_tool_result": frozenset(
        {"type", "tool_use_id", "content", "cache_control", "caller"}
    ),
}
_OPAQUE: Final = ("server_tool_use", "web_search_tool_result")
"""Blocks of an earlier web search, whose content is encrypted."""
_SEARCH: Final = "web_search_20250305"
_SEARCH_FIELDS: Final = frozenset(
    {"type", "name", "max_uses", "allowed_domains", "blocked_domains", "user_location"}
    | {"cache_control"}
)
_ROUNDS: Final = 11
"""How often a call with a tool of Anthropic's samples: ten times, as its page "Handling stop
reasons" documents, and once more, as was seen."""
_TOOL: Final = frozenset(
    {"type", "name", "description", "input_schema", "cache_control", "strict"}
    | {"input_examples", "eager_input_streaming"}
)


@dataclass(slots=True)
class _Media:
    """Images seen so far."""

    images: int = 0
    bytes: int = 0
    """Bytes of their data, which no model reads as text."""
    opaque: str | None = None
    """Where there is something that only the provider can measure."""
    file: str | None = None
    """Where there is a file."""


def parse_message(body: bytes) -> CallRequest:
    """Read a body of POST /v1/messages.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    found = read.read_object(body)
    read.check(found, _ALLOWED, _REASONS, _CHECKS)
    written, tools, media = _read_prompt(found)
    limit = read.integer(found, "max_tokens", read.MAX_TOKENS)
    searches = _searches(found)
    others = read.inside({key: found[key] for key in found if key in _PLAIN})
    head: dict[str, object] = {"stream": True} if read.flag(found, "stream") else {}
    head |= {key: found[key] for key in ("service_tier",) if key in found}
    demand = Demand(
        prompt_bytes=longest_form(written) - media.bytes + _again(found["messages"]),
        messages=len(read.list_at(found["messages"], "messages")),
        schema_bytes=longest_form(tools),
        limit=limit,
        images=media.images,
        opaque="tools" if searches else media.opaque,
        file=media.file,
        rounds=_ROUNDS if searches else 1,
        kinds=read.KINDS_READ if media.images or media.opaque else read.KINDS,
        units=Units(searches=searches) if searches else None,
    )

    def write(offer: Offer, most: int) -> bytes:
        upstream = {"model": offer.model.upstream_name, "max_tokens": most} | head
        if vendor_of(offer.provider.endpoint) is Vendor.ANTHROPIC:
            # By default a committed, and dearer, capacity may be used.
            upstream["service_tier"] = "standard_only"
        upstream |= dearest_provider(offer)
        return read.joined(upstream, written, tools, others)

    # A text with these characters has its quotes escaped.
    hour = _FOR_AN_HOUR in written or _FOR_AN_HOUR in tools
    return CallRequest(
        read.model_of(found),
        demand,
        write,
        lambda most: MessageMeter(most, for_an_hour=hour),
        lambda answer, most: message_usage(answer, most, for_an_hour=hour),
    )


def parse_count(body: bytes) -> CallRequest:
    """Read a body of POST /v1/messages/count_tokens, which no provider charges for.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    found = read.read_object(body)
    read.check(found, _COUNTED, _REASONS, _CHECKS)
    written, tools, _ = _read_prompt(found)

    def write(offer: Offer, most: int) -> bytes:
        return read.joined({"model": offer.model.upstream_name}, written, tools)

    free = Demand(prompt_bytes=0, messages=0, choices=0, limit=1, contexts=0)
    return CallRequest(read.model_of(found), free, write, MessageMeter, count_usage)


def check_betas(header: str | None) -> str:
    """Let only those betas pass that change nothing of what a call may cost at most, and write them
    anew; empty: there are none.

    Raises:
        Refusal: 400.
    """
    if header is None:
        return ""
    betas = [beta.strip() for beta in header.split(",")]
    for beta in betas:
        if beta and beta not in BETAS:
            raise bad(f"anthropic-beta: {beta}", read.UNKNOWN)
    return ",".join(filter(None, betas))


def _read_prompt(found: Fields) -> tuple[bytes, bytes, _Media]:
    """Check and write what the model reads: messages and their like, and schemas."""
    media = _Media()
    _check_messages(found.get("messages"), media)
    system = found.get("system")
    if system is not None and not isinstance(system, str):
        _check_blocks(system, "system", media)
    prompt = {key: found[key] for key in found if key in _PROMPT}
    written = read.inside({"messages": found["messages"]} | prompt)
    return written, read.inside({key: found[key] for key in found if key in _SCHEMAS}), media


def _again(messages: object) -> int:
    """Count earlier tool calls once more: their JSON may be rendered with more space."""
    blocks = [
        block
        for message in (messages if isinstance(messages, list) else ())
        for block in (message["content"] if isinstance(message["content"], list) else ())
        if block.get("type") == "tool_use"
    ]
    return longest_form(read.serialise(blocks)) if blocks else 0


def _check_messages(messages: object, media: _Media) -> None:
    for index, item in enumerate(read.list_at(messages, "messages")):
        where = f"messages[{index}]"
        message = read.object_at(item, where)
        read.only(message, {"role", "content"}, where, _REASONS)
        content = message.get("content")
        if not isinstance(content, str):
            _check_blocks(content, f"{where}.content", media)


def _check_blocks(blocks: object, where: str, media: _Media) -> None:
    if not isinstance(blocks, list):
        raise bad(where, "it must be a string or a list of blocks")
    for index, block in enumerate(blocks):
        _check_block(block, f"{where}[{index}]", media)


def _check_block(value: object, where: str, media: _Media) -> None:
    block = read.object_at(value, where)
    kind = block.get("type")
    known = _BLOCKS.get(kind) if isinstance(kind, str) else None
    if known is None:
        hosted = str(kind).startswith(("server_tool", "web_", "mcp_", "code_execution"))
        raise bad(f"{where}.type", HOSTED if hosted else MEDIA)
    read.only(block, known, where, _REASONS)
    if kind in _OPAQUE:
        if kind == "server_tool_use" and block.get("name") != "web_search":
            raise bad(f"{where}.name", HOSTED)
        media.opaque = f"{where}.type"
        _check_cache(block.get("cache_control"), f"{where}.cache_control")
        return
    _check_cache(block.get("cache_control"), f"{where}.cache_control")
    _check_citations(block.get("citations"), kind, f"{where}.citations", media)
    if kind in ("image", "document"):
        _check_source(block.get("source"), f"{where}.source", media, image=kind == "image")
    content = block.get("content")
    if content is not None and not isinstance(content, str):
        _check_blocks(content, f"{where}.content", media)


def _check_source(value: object, where: str, media: _Media, *, image: bool) -> None:
    source = read.object_at(value, where)
    kind, data = source.get("type"), source.get("data")
    if image and kind == "base64" and isinstance(data, str):
        media.images += 1
        media.bytes += len(data) if data.isascii() else 0
    elif image and kind == "url":
        media.images += 1
    elif not image and kind in ("base64", "url"):
        # A PDF is read as text and as images: its length is in no byte of the request.
        media.file = media.opaque = f"{where}.type"
        media.bytes += len(data) if isinstance(data, str) and data.isascii() else 0
    elif image or kind not in ("text", "content"):
        raise bad(f"{where}.type", MEDIA)
    elif kind == "content" and not isinstance(source.get("content"), str):
        _check_blocks(source.get("content"), f"{where}.content", media)


def _check_cache(value: object, where: str) -> None:
    if value is None:
        return
    control = read.object_at(value, where)
    read.only(control, _CACHE, where, _REASONS)
    if control.get("type") != "ephemeral" or control.get("ttl", "5m") not in ("5m", "1h"):
        raise bad(where, "it must be ephemeral, for 5m or 1h")


def _check_citations(value: object, kind: object, where: str, media: _Media) -> None:
    if kind == "text" or value is None:
        return  # what an earlier answer cited
    if read.flag(read.object_at(value, where), "enabled", where):
        # The provider cuts the document into sentences, and adds to each.
        media.opaque = where


_check_kinds: Final = read.tools_check(
    "custom", "custom", _TOOL, _REASONS, {_SEARCH: _SEARCH_FIELDS}
)


def _check_tools(tools: object) -> None:
    _check_kinds(tools)
    for index, value in enumerate(tools if isinstance(tools, list) else ()):
        where = f"tools[{index}]"
        tool = read.object_at(value, where)
        _check_cache(tool.get("cache_control"), f"{where}.cache_control")
        if tool.get("type") == _SEARCH:
            _most_searches(tool, where)


def _searches(found: Fields) -> int:
    """Count the web searches that a checked request allows."""
    tools = [tool for tool in read.texts(found, "tools") if isinstance(tool, dict)]
    return sum(
        _most_searches(tool, f"tools[{index}]")
        for index, tool in enumerate(tools)
        if tool.get("type") == _SEARCH
    )


def _most_searches(tool: Fields, where: str) -> int:
    most = tool.get("max_uses")
    if type(most) is not int or not 1 <= most <= read.MAX_SEARCHES:
        raise bad(
            f"{where}.max_uses", f"say how many searches: a number from 1 to {read.MAX_SEARCHES}"
        )
    return most


_CHECKS: Final = {
    "tools": _check_tools,
    "service_tier": read.must_be(
        "standard_only", "service_tier", "only standard_only is allowed: others cost more"
    ),
}


def count_usage(body: bytes, plausible: int) -> Usage | None:
    """Counting costs nothing, whatever the answer."""
    return Usage(0, 0)


_ALLOWED: Final = _READ | _PLAIN | _PROMPT | _SCHEMAS
_COUNTED: Final = frozenset({"model", "messages"}) | _PROMPT | _SCHEMAS
MESSAGES: Final = Operation(
    "/v1/messages",
    "/messages",
    Protocol.ANTHROPIC,
    parse_message,
    "chat",
    headers=(VERSION,),
    fields=_ALLOWED | _CHECKS.keys(),
)
COUNT_TOKENS: Final = Operation(
    "/v1/messages/count_tokens",
    "/messages/count_tokens",
    Protocol.ANTHROPIC,
    parse_count,
    "count_tokens",
    headers=(VERSION,),
    fields=_COUNTED | _CHECKS.keys(),
)
