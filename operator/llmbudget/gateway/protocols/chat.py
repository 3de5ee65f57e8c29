"""OpenAI's chat completions: what a caller may ask, and what is sent upstream for it.

The upstream body is written anew from what was parsed, so the provider reads exactly the request
that was bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from llmbudget.api.costs import ServiceTier
from llmbudget.api.provider import Protocol
from llmbudget.decide.bounds import Demand, longest_form
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.vendors import Vendor, vendor_of
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.chat_answers import ChatMeter, usage_of
from llmbudget.gateway.protocols.fields import HOSTED, MEDIA, STORED, Fields, bad
from llmbudget.gateway.protocols.openrouter import dearest_provider
from llmbudget.gateway.protocols.operation import CallRequest, Operation

LIMITS: Final = ("max_completion_tokens", "max_tokens")
PLAIN: Final = frozenset(
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
_READ: Final = frozenset({"model", "messages", "stream_options", *_WRITTEN, *LIMITS})
"""Fields that are read here and written anew."""
_APART: Final = _READ | _SCHEMAS
_MESSAGE: Final = frozenset(
    {"role", "content", "name", "refusal", "reasoning_content", "extra_content"}
    | {"tool_calls", "tool_call_id", "function_call"}
)
_CALLS: Final = ("tool_calls", "function_call")
_PARTS: Final = {"text": frozenset({"type", "text"}), "refusal": frozenset({"type", "refusal"})}
_TOOL: Final = frozenset({"type", "function"})
_STREAM_OPTIONS: Final = frozenset({"include_usage", "include_obfuscation"})
_IMAGE: Final = frozenset({"type", "image_url"})
_IMAGE_URL: Final = frozenset({"url", "detail"})
_AUDIO: Final = frozenset({"type", "input_audio"})
_FILE: Final = frozenset({"type", "file"})
_FILE_FIELDS: Final = frozenset({"filename", "file_data"})
_INPUT_AUDIO: Final = frozenset({"data", "format"})
_MODALITIES: Final = (["text"], ["text", "audio"], ["audio", "text"])
_SERVICES: Final = tuple(tier.value for tier in ServiceTier)
_USUAL_SERVICE: Final[Fields] = {"service_tier": "default"}
_OPENAIS: Final = (Vendor.OPENAI, Vendor.AZURE)
_AZURE_SERVICES: Final = "2025-10-01"
"""The first version of Azure's older API that knows service tiers, as its page "Priority
processing" documents; earlier ones refuse fields that they don't know."""
_DETAILS: Final = (None, "low", "high", "auto")

_OPENROUTER: Final = "it would let the provider choose another model, route or price"
REASONS: Final = {
    "web_search_options": HOSTED,
    "plugins": HOSTED,
    "modalities": MEDIA,
    "audio": MEDIA,
    "previous_response_id": STORED,
    "file_id": STORED,
    "conversation": STORED,
    "prediction": "rejected predicted tokens are charged beyond the output limit",
    "best_of": "it charges for answers that are not returned: use n",
    "models": _OPENROUTER,
    "provider": _OPENROUTER,
    "route": _OPENROUTER,
    "transforms": _OPENROUTER,
    "extra_body": "its fields belong at the top level of the body",
    "cache_control": read.CACHED,
}


def parse_chat(body: bytes) -> CallRequest:
    """Read a body of POST /v1/chat/completions.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    found = read.read_object(body)
    read.check(found, _ALLOWED, REASONS, _CHAT_CHECKS)
    if ("audio" in found) != ("audio" in read.texts(found, "modalities")):
        raise bad("audio", "it belongs to modalities with audio: send both")
    media = _Media()
    messages = _check_messages(found.get("messages"), media)
    model = read.model_of(found)
    options = stream_options(found, stream=read.flag(found, "stream"))
    choices = read.integer(found, "n", read.MAX_CHOICES) or 1
    schemas = read.inside({key: found[key] for key in found if key in _SCHEMAS})
    others = read.inside({key: found[key] for key in found if key not in _APART})
    written = b'"messages":' + read.serialise(messages)
    field, limit = output_limit(found)
    demand = Demand(
        prompt_bytes=_prompt_bytes(messages, written, others) - media.bytes,
        messages=len(messages),
        schema_bytes=longest_form(schemas),
        choices=choices,
        limit=limit,
        images=media.images,
        audio=media.audio,
        opaque=media.file,
        file=media.file,
        service=service_of(found),
        kinds=_kinds(media, speaks="audio" in found),
    )
    asked = options.get("include_usage", False)

    def request(head: Fields, demand: Demand) -> CallRequest:
        def write(offer: Offer, most: int) -> bytes:
            upstream = upstream_head(offer, head, field, limit, most)
            return read.joined(upstream, written, schemas, others)

        return CallRequest(
            model,
            demand,
            write,
            lambda most: ChatMeter(most, include_usage=asked, service=demand.service),
            lambda answer, most: usage_of(answer, most, demand.service),
            usual=usual_of(request, head, demand),
        )

    return request(written_anew(found, _WRITTEN, options), demand)


def upstream_head(
    offer: Offer, head: Fields, field: str, asked: int | None, most: int
) -> dict[str, object]:
    """Write the first fields: the provider's own model name, and the limit that the hold bounds.

    The limit is written as `max_tokens`, which every compatible server heeds: some, DeepSeek among
    them, pass over `max_completion_tokens` in silence. At OpenAI and Azure, which refuse what they
    don't know and whose reasoning models refuse `max_tokens`, it goes in the field that the caller
    used, else in `max_completion_tokens`. A provider's resource may say otherwise.
    """
    if offer.provider.limit_field is not None:
        field = offer.provider.limit_field.value
    elif vendor_of(offer.provider.endpoint, offer.provider.api_version) not in _OPENAIS:
        field = "max_tokens"
    elif asked is None:
        field = "max_completion_tokens"
    return {"model": offer.model.upstream_name, field: most} | with_service(offer, head)


def with_service(offer: Offer, head: Fields) -> dict[str, object]:
    """Ask OpenAI and Azure for the usual tier unless the caller asks for one: by default a
    project's or a deployment's settings choose, and may choose a dearer one. OpenRouter chooses
    among providers, and is told how dear one may be."""
    fields = {**_USUAL_SERVICE, **head} if _knows_services(offer) else dict(head)
    return fields | dearest_provider(offer)


def _knows_services(offer: Offer) -> bool:
    version = offer.provider.api_version
    if version is None:
        return vendor_of(offer.provider.endpoint) in _OPENAIS
    # Versions without a date, "latest" and "preview", come after all digits.
    return version >= _AZURE_SERVICES


def output_limit(fields: Fields) -> tuple[str, int | None]:
    """Find the output limit and the field it came in.

    Raises:
        Refusal: 400.
    """
    given = [name for name in LIMITS if name in fields]
    if len(given) > 1:
        raise bad(given[1], "max_completion_tokens says the same: send one of them")
    if not given:
        return "max_tokens", None
    return given[0], read.integer(fields, given[0], read.MAX_TOKENS)


def stream_options(fields: Fields, *, stream: bool) -> dict[str, bool]:
    """Read the options of a stream.

    Raises:
        Refusal: 400.
    """
    options = read.object_at(fields.get("stream_options", {}), "stream_options")
    if options and not stream:
        raise bad("stream_options", "it is allowed only with stream: true")
    read.only(options, _STREAM_OPTIONS, "stream_options", REASONS)
    return {
        key: read.flag(options, key, f"stream_options.{key}")
        for key, value in options.items()
        if value is not None
    }


def written_anew(
    fields: Fields, names: tuple[str, ...], options: Mapping[str, bool]
) -> dict[str, object]:
    """Collect fields that are written anew; every stream sends its usage."""
    head: dict[str, object] = {key: fields[key] for key in names if key in fields}
    if head.get("stream"):
        head["stream_options"] = {**options, "include_usage": True}
    return head


@dataclass(slots=True)
class _Media:
    """The images and the sound of a request."""

    images: int = 0
    audio: bool = False
    bytes: int = 0
    """Bytes of their data and URLs, which no model reads as text."""
    file: str | None = None
    """Where there is a file, which only the provider can measure."""
    unknown: bool = False
    """Whether there is a file that may be a sound."""


def _kinds(media: _Media, *, speaks: bool) -> frozenset[str]:
    """Tell what tokens may be beside text. Some models draw unasked; none speaks so."""
    kinds = read.KINDS_READ if media.images or media.file else read.KINDS
    kinds |= read.KINDS_HEARD if media.audio or media.unknown else frozenset()
    return kinds | {"output_audio"} if speaks else kinds


def _prompt_bytes(parsed: list[dict[str, object]], messages: bytes, others: bytes) -> int:
    """Measure the prompt. Earlier tool calls count twice: templates may space their JSON out."""
    calls = [message[key] for message in parsed for key in _CALLS if key in message]
    again = longest_form(read.serialise(calls)) if calls else 0
    return longest_form(messages) + longest_form(others) + again


def _check_messages(messages: object, media: _Media) -> list[dict[str, object]]:
    checked: list[dict[str, object]] = []
    for index, item in enumerate(read.list_at(messages, "messages")):
        where = f"messages[{index}]"
        message = read.object_at(item, where)
        read.only(message, _MESSAGE, where, REASONS)
        content = message.get("content")
        if isinstance(content, list):
            for part_index, part in enumerate(content):
                _check_part(part, f"{where}.content[{part_index}]", media)
        elif content is not None and not isinstance(content, str):
            raise bad(f"{where}.content", "it must be a string or a list of parts")
        checked.append(message)
    return checked


def _check_part(part: object, where: str, media: _Media) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "image_url":
        read.only(part, _IMAGE, where, REASONS)
        _check_image(part.get("image_url"), f"{where}.image_url", media)
        return
    if isinstance(part, dict) and kind == "input_audio":
        read.only(part, _AUDIO, where, REASONS)
        _check_sound(part.get("input_audio"), f"{where}.input_audio", media)
        return
    if isinstance(part, dict) and kind == "file":
        read.only(part, _FILE, where, REASONS)
        file = read.object_at(part.get("file"), f"{where}.file")
        read.only(file, _FILE_FIELDS, f"{where}.file", REASONS)
        media.bytes += read.file_bytes(file, f"{where}.file", "file_data")
        media.file = f"{where}.file"
        media.unknown = media.unknown or not read.is_pdf(file)
        return
    known = _PARTS.get(kind) if isinstance(kind, str) else None
    if not isinstance(part, dict) or known is None:
        raise bad(f"{where}.{kind}" if isinstance(kind, str) else where, MEDIA)
    read.only(part, known, where, REASONS)


def _check_image(value: object, where: str, media: _Media) -> None:
    image = read.object_at(value, where)
    read.only(image, _IMAGE_URL, where, REASONS)
    size = read.image_bytes(image.get("url"), f"{where}.url")
    check_detail(image, where)
    media.images += 1
    media.bytes += size


def check_detail(image: Fields, where: str) -> None:
    """Let an image be read only at details whose cost is bounded.

    Raises:
        Refusal: 400.
    """
    if image.get("detail") not in _DETAILS:
        raise bad(f"{where}.detail", "it must be low, high or auto")


def _check_sound(value: object, where: str, media: _Media) -> None:
    sound = read.object_at(value, where)
    read.only(sound, _INPUT_AUDIO, where, REASONS)
    data = sound.get("data")
    if not isinstance(data, str):
        raise bad(f"{where}.data", "it must be base64")
    media.audio = True
    media.bytes += len(data) if data.isascii() else 0


def _check_modalities(value: object) -> None:
    if value not in _MODALITIES:
        raise bad("modalities", "only text and audio are allowed, and text always")


def _check_voice(value: object) -> None:
    audio = read.object_at(value, "audio")
    read.only(audio, {"voice", "format"}, "audio", REASONS)
    if not isinstance(audio.get("voice"), str):
        raise bad("audio.voice", "it must be the name of a voice: what others cost is not known")


def _check_service(value: object) -> None:
    if not isinstance(value, str) or value not in ("default", *_SERVICES):
        allowed = f"only default, {' and '.join(_SERVICES)} are allowed"
        raise bad("service_tier", f"{allowed}: others have other prices")


def usual_of(
    request: Callable[[Fields, Demand], CallRequest], head: Fields, demand: Demand
) -> Callable[[], CallRequest] | None:
    """Offer to make a request without the service tier that it asks for; None: it asks for none."""
    if demand.service is None:
        return None
    others = {key: value for key, value in head.items() if key != "service_tier"}
    return lambda: request(others, replace(demand, service=None))


def service_of(found: Fields) -> str | None:
    """Tell the service tier that a checked request asks for; None: the usual one."""
    value = found.get("service_tier")
    return value if isinstance(value, str) and value in _SERVICES else None


CHECKS: Final[Mapping[str, read.Check]] = {
    "tools": read.tools_check("function", None, _TOOL, REASONS),
    "service_tier": _check_service,
    "store": read.must_be(False, "store", "only false is allowed: a prompt is kept nowhere"),
}
_CHAT_CHECKS: Final = {**CHECKS, "modalities": _check_modalities, "audio": _check_voice}
_ALLOWED: Final = _READ | _SCHEMAS | PLAIN

CHAT: Final = Operation(
    "/v1/chat/completions",
    "/chat/completions",
    Protocol.OPENAI,
    parse_chat,
    "chat",
    fields=_ALLOWED | _CHAT_CHECKS.keys(),
)
