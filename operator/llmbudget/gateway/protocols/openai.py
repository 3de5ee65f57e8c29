"""OpenAI's chat completions: what a caller may ask, and what is sent upstream for it.

Fields are allow-listed. What isn't known here may cost what nobody bounded, so it is refused by
name rather than dropped: a caller must not believe that it was heard. The upstream body is written
anew from what was parsed, so the provider reads exactly the request that was bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from llmbudget.decide.bounds import Demand, longest_form
from llmbudget.decide.catalogue import Offer
from llmbudget.gateway.protocols import strict
from llmbudget.gateway.protocols.errors import Refusal, malformed

MAX_TOKENS: Final = 10_000_000
"""Highest output limit: what a model's `maxOutput` may be at most."""
MAX_CHOICES: Final = 128
MAX_NAME: Final = 256
"""Characters of a model's name: a provider's and a model's at their longest, and a slash."""

_LIMITS: Final = ("max_completion_tokens", "max_tokens")
_PLAIN: Final = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "stop", "seed", "user", "metadata"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "reasoning_effort", "verbosity"),
        *("safety_identifier", "prompt_cache_key"),
    }
)
"""Fields that go upstream as they are: they change the answer, never its bound."""
_SCHEMAS: Final = frozenset(
    {*("tools", "tool_choice", "parallel_tool_calls"), "functions", "function_call"}
    | {"response_format"}
)
"""Fields that a provider renders into the prompt in a notation of its own."""
_WRITTEN: Final = ("n", "stream", "service_tier")
_READ: Final = frozenset({"model", "messages", "stream_options", *_WRITTEN, *_LIMITS})
"""Fields that are read here and written anew."""
_APART: Final = _READ | _SCHEMAS
_MESSAGE: Final = frozenset(
    {"role", "content", "name", "refusal", "reasoning_content"}
    | {"tool_calls", "tool_call_id", "function_call"}
)
_CALLS: Final = ("tool_calls", "function_call")
_PARTS: Final = {"text": frozenset({"type", "text"}), "refusal": frozenset({"type", "refusal"})}
_TOOL: Final = frozenset({"type", "function"})
_STREAM_OPTIONS: Final = frozenset({"include_usage", "include_obfuscation"})

_MEDIA: Final = "media can't be bounded yet: send text only"
_HOSTED: Final = "tools that the provider runs charge beyond the tokens of this call"
_OPENROUTER: Final = "it would let the provider choose another model, route or price"
_REASONS: Final = {
    "web_search_options": _HOSTED,
    "plugins": _HOSTED,
    "modalities": _MEDIA,
    "audio": _MEDIA,
    "previous_response_id": "the provider would add input that can't be bounded",
    "conversation": "the provider would add input that can't be bounded",
    "prediction": "rejected predicted tokens are charged beyond the output limit",
    "best_of": "it charges for answers that are not returned: use n",
    "models": _OPENROUTER,
    "provider": _OPENROUTER,
    "route": _OPENROUTER,
    "transforms": _OPENROUTER,
    "extra_body": "its fields belong at the top level of the body",
    "cache_control": "what the provider charges for the cache can't be bounded yet",
}
_UNKNOWN: Final = "this gateway doesn't know what it costs"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that was read, allowed and measured."""

    model: str
    """As the caller wrote it: a name, PROVIDER/name, or auto."""
    stream: bool
    include_usage: bool
    """Whether the caller wants the usage chunk that the gateway makes every stream send."""
    demand: Demand
    limit_field: str
    """The field that carries the output limit upstream."""
    head: Mapping[str, object]
    """Fields that are written anew: n, stream, stream_options, service_tier."""
    prompt: bytes
    """The other fields, as the inside of a JSON object."""


def parse_chat(body: bytes) -> ChatRequest:
    """Read a body of POST /v1/chat/completions.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    try:
        return _read(strict.parse(body))
    except strict.NotStrict as error:
        raise malformed(f"{error}.", code="invalid_json") from None


def _read(document: object) -> ChatRequest:
    if not isinstance(document, dict):
        raise malformed("The body is no JSON object.", code="invalid_json")
    fields = {key: value for key, value in document.items() if value is not None}
    _check_fields(fields)
    model = fields.get("model")
    if not isinstance(model, str) or not 1 <= len(model) <= MAX_NAME or not model.isprintable():
        raise _bad("model", f"it must be a string of 1 to {MAX_NAME} printable characters")
    stream = _flag(fields, "stream", "stream")
    options = _stream_options(fields, stream)
    choices = _integer(fields, "n", MAX_CHOICES) or 1
    schemas = _inside({key: fields[key] for key in fields if key in _SCHEMAS})
    others = _inside({key: fields[key] for key in fields if key not in _APART})
    messages = b'"messages":' + strict.serialise(fields["messages"])
    field, limit = _limit(fields)
    return ChatRequest(
        model=model,
        stream=stream,
        include_usage=options.get("include_usage", False),
        demand=Demand(
            prompt_bytes=_prompt_bytes(fields["messages"], messages, others),
            messages=len(fields["messages"]),
            schema_bytes=longest_form(schemas),
            choices=choices,
            limit=limit,
        ),
        limit_field=field,
        head=_head(fields, stream, options),
        prompt=b",".join(part for part in (messages, schemas, others) if part),
    )


def _prompt_bytes(parsed: list[dict[str, object]], messages: bytes, others: bytes) -> int:
    """Measure the prompt. Earlier tool calls count twice: templates may space their JSON out."""
    calls = [message[key] for message in parsed for key in _CALLS if key in message]
    again = longest_form(strict.serialise(calls)) if calls else 0
    return longest_form(messages) + longest_form(others) + again


def upstream_body(request: ChatRequest, offer: Offer, limit: int) -> bytes:
    """Write the body for a provider: its own model name, and the limit that the hold bounds.

    The limit goes in the field that the caller used. Without one it is `max_tokens`, which every
    compatible server knows, but `max_completion_tokens` for OpenAI itself, whose reasoning models
    refuse the other. OpenAI is also told to bill the standard tier: by default a project's
    settings choose, and may choose a dearer one.
    """
    field, head = request.limit_field, dict(request.head)
    if urlsplit(offer.provider.endpoint).hostname == "api.openai.com":
        field = "max_completion_tokens" if request.demand.limit is None else field
        head["service_tier"] = "default"
    head = {"model": offer.model.upstream_name, field: limit} | head
    return strict.serialise(head)[:-1] + b"," + request.prompt + b"}"


def models_body(offers: Iterable[Offer]) -> bytes:
    """Write the answer of GET /v1/models: each name once, and PROVIDER/name where two offer it."""
    owners: dict[str, list[str]] = {}
    for offer in offers:
        owners.setdefault(offer.name, []).append(offer.provider.name)
    listed = [(name, names[0]) for name, names in owners.items()]
    listed += [
        (f"{owner}/{name}", owner)
        for name, names in owners.items()
        if len(names) > 1
        for owner in names
    ]
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in listed
    ]
    return strict.serialise({"object": "list", "data": data})


def _check_fields(fields: Mapping[str, object]) -> None:
    for key in fields:
        if key not in _ALLOWED:
            raise _bad(key, _REASONS.get(key, _UNKNOWN))
        if key in _CHECKED:
            _CHECKED[key](fields[key])
    _check_messages(fields.get("messages"))


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise _bad("messages", "it must be a non-empty list")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _bad(where, "it must be an object")
        _only(message, _MESSAGE, where)
        content = message.get("content")
        if isinstance(content, list):
            for part_index, part in enumerate(content):
                _check_part(part, f"{where}.content[{part_index}]")
        elif content is not None and not isinstance(content, str):
            raise _bad(f"{where}.content", "it must be a string or a list of parts")


def _check_part(part: object, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    known = _PARTS.get(kind) if isinstance(kind, str) else None
    if not isinstance(part, dict) or known is None:
        raise _bad(f"{where}.{kind}" if isinstance(kind, str) else where, _MEDIA)
    _only(part, known, where)


def _check_tools(tools: object) -> None:
    if not isinstance(tools, list):
        raise _bad("tools", "it must be a list")
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise _bad(f"{where}.type", f"only function is allowed: {_HOSTED}")
        _only(tool, _TOOL, where)


def _check_tier(tier: object) -> None:
    if tier != "default":
        raise _bad("service_tier", "only default is allowed: other tiers have other prices")


def _check_store(store: object) -> None:
    if store is not False:
        raise _bad("store", "only false is allowed: a prompt is kept nowhere")


_CHECKED: Final[Mapping[str, Callable[[object], None]]] = {
    "tools": _check_tools,
    "service_tier": _check_tier,
    "store": _check_store,
}


_ALLOWED: Final = _READ | _SCHEMAS | _PLAIN | _CHECKED.keys()


def _only(value: Mapping[str, object], known: frozenset[str], where: str) -> None:
    for key in value:
        if key not in known:
            raise _bad(f"{where}.{key}", _REASONS.get(key, _UNKNOWN))


def _limit(fields: Mapping[str, object]) -> tuple[str, int | None]:
    """Find the output limit and the field it came in."""
    given = [name for name in _LIMITS if name in fields]
    if len(given) > 1:
        raise _bad(given[1], "max_completion_tokens says the same: send one of them")
    if not given:
        return "max_tokens", None
    return given[0], _integer(fields, given[0], MAX_TOKENS)


def _stream_options(fields: Mapping[str, object], stream: bool) -> dict[str, bool]:
    options = fields.get("stream_options", {})
    if not isinstance(options, dict):
        raise _bad("stream_options", "it must be an object")
    if options and not stream:
        raise _bad("stream_options", "it is allowed only with stream: true")
    _only(options, _STREAM_OPTIONS, "stream_options")
    return {
        key: _flag(options, key, f"stream_options.{key}")
        for key, value in options.items()
        if value is not None
    }


def _head(
    fields: Mapping[str, object], stream: bool, options: Mapping[str, bool]
) -> dict[str, object]:
    head: dict[str, object] = {key: fields[key] for key in _WRITTEN if key in fields}
    if stream:
        head["stream_options"] = {**options, "include_usage": True}
    return head


def _integer(fields: Mapping[str, object], name: str, most: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    # A bool is an int to Python, not to JSON.
    if type(value) is not int or not 1 <= value <= most:
        raise _bad(name, f"it must be a whole number from 1 to {most}")
    return value


def _flag(fields: Mapping[str, object], name: str, where: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise _bad(where, "it must be true or false")
    return value


def _inside(fields: Mapping[str, object]) -> bytes:
    return strict.serialise(fields)[1:-1] if fields else b""


def _bad(field: str, reason: str) -> Refusal:
    # The name may be the caller's own invention: of any length, with any characters.
    name = field if len(field) <= 120 else f"{field[:120]}…"
    name = name if name.isprintable() else ascii(name)
    return malformed(f"Field {name} is refused: {reason}.", param=name, code="unsupported_field")
