"""OpenAI's images: charged by tokens, or by the image, at the price of its size and quality."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from llmbudget.api.provider import Protocol
from llmbudget.contract.config import Unit
from llmbudget.decide.bounds import Demand, longest_form
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.cost import Units, Usage
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.fields import Fields, bad
from llmbudget.gateway.protocols.operation import CallRequest, Operation
from llmbudget.gateway.protocols.sse import TypedMeter, as_object, usage_part
from llmbudget.gateway.protocols.usages import reported_cost, tokens_of

MAX_IMAGES: Final = 10
"""Images of one call, as OpenAI documents."""
_MOST_PARTIAL: Final = 3
_PARTIAL_TOKENS: Final = 100
"""Output tokens of a partial image, as OpenAI documents."""
_PLAIN: Final = frozenset(
    {"background", "moderation", "output_format", "output_compression", "response_format"}
    | {"size", "quality", "style", "user", "safety_identifier"}
)
_READ: Final = frozenset({"model", "prompt", "n", "stream", "partial_images"})
_ANIMATED: Final = "what its frames cost is not known"
_REASONS: Final = {
    "svg": "another model writes it, whose tokens are charged too",
    "frame_count": _ANIMATED,
    "frame_duration_ms": _ANIMATED,
    "image": "edits are not served",
}
_FORMATS: Final = ("png", "webp", "jpeg")
_WORD: Final = re.compile(r"[a-z0-9]{1,32}")
_MADE: Final = re.compile(rb'"(?:b64_json|url)"\s*:\s*"')


def parse_images(body: bytes) -> CallRequest:
    """Read a body of POST /v1/images/generations.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    found = read.read_object(body)
    read.check(found, _READ | _PLAIN, _REASONS, _CHECKS)
    if not isinstance(found.get("prompt"), str):
        raise bad("prompt", "it must be a string")
    stream, number = read.flag(found, "stream"), read.integer(found, "n", MAX_IMAGES) or 1
    if stream and number > 1:
        raise bad("n", "it must be 1 with stream: true")
    written = b'"prompt":' + read.serialise(found["prompt"])
    others = read.inside({key: found[key] for key in found if key in _PLAIN})
    head = {key: found[key] for key in ("n", "stream", "partial_images") if key in found}
    units = Units(images=number, size=_asked(found, "size"), quality=_asked(found, "quality"))
    demand = Demand(
        prompt_bytes=longest_form(written) + longest_form(others),
        messages=1,
        choices=number,
        makes="An image",
        beside=_PARTIAL_TOKENS * _partial(found, stream=stream),
        kinds=frozenset({"output_image", "input_image", "cached_image"}),
        units=units,
        charged_by=frozenset({Unit.TOKEN, Unit.IMAGE}),
    )

    def write(offer: Offer, most: int) -> bytes:
        return read.joined({"model": offer.model.upstream_name} | head, written, others)

    def usage_of(answer: bytes, plausible: int) -> Usage | None:
        made = len(_MADE.findall(answer)) or None
        usage = as_object(usage_part(answer).get("usage"))
        tokens = tokens_of(usage, plausible)
        return replace(tokens or _untold(usage), units=replace(units, images=made))

    return CallRequest(
        read.model_of(found),
        demand,
        write,
        lambda plausible: ImageMeter(plausible, units),
        usage_of,
    )


def _untold(usage: Fields) -> Usage:
    """Make a usage of an answer that tells no tokens."""
    return Usage(0, 0, reported=reported_cost(usage))


def _partial(fields: Fields, *, stream: bool) -> int:
    """Count the partial images that are asked for."""
    if fields.get("partial_images") in (None, 0):
        return 0
    if not stream:
        raise bad("partial_images", "it is allowed only with stream: true")
    return read.integer(fields, "partial_images", _MOST_PARTIAL) or 0


def _asked(fields: Fields, name: str) -> str | None:
    """Read a size or quality; None: the provider may choose."""
    value = fields.get(name)
    if value in (None, "auto"):
        return None
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise bad(name, "it must be a word such as high or 1024x1024")
    return value


def _check_format(value: object) -> None:
    if value not in _FORMATS:
        raise bad("output_format", f"only {', '.join(_FORMATS)} are allowed: {_ANIMATED}")


_CHECKS: Final = {"output_format": _check_format}


class ImageMeter(TypedMeter):
    """Reads the events of an image, which carry whole pictures."""

    max_event = 24 * 1024 * 1024
    ends = frozenset({"image_generation.completed"})

    def __init__(self, plausible: int, units: Units) -> None:
        super().__init__(plausible)
        self._units = units

    def _measure(self, document: Fields) -> Usage | None:
        usage = as_object(document.get("usage"))
        tokens = tokens_of(usage, self._plausible)
        return replace(tokens or _untold(usage), units=self._units)


IMAGES: Final = Operation(
    "/v1/images/generations",
    "/images/generations",
    Protocol.OPENAI,
    parse_images,
    "image_generation",
    generates=False,
    fields=_READ | _PLAIN,
)
