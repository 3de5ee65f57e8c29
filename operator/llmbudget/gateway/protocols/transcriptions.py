"""OpenAI's transcriptions: a sound file becomes text, charged by tokens or by the minute.

A file's length is at most what the provider takes: whatever a file says of itself, a decoder may
find other sound in its bytes, a hundred times longer. By tokens, the sound counts as a whole
context of the model, and the text as its `maxOutput`: no request can limit them.
"""

from __future__ import annotations

import math
import secrets
from decimal import Decimal, InvalidOperation
from typing import Final

from llmbudget.api.provider import Protocol
from llmbudget.contract.config import Unit
from llmbudget.decide.bounds import Demand, longest_form
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.cost import Units, Usage
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.fields import MEDIA, Fields, bad
from llmbudget.gateway.protocols.forms import MAX_FORM, read_form, write_form
from llmbudget.gateway.protocols.operation import CallRequest, Operation
from llmbudget.gateway.protocols.sse import TypedMeter, as_object, usage_part
from llmbudget.gateway.protocols.usages import tokens_of

_ONCE: Final = frozenset(
    {"model", "language", "prompt", "response_format", "temperature", "stream"}
)
_LISTS: Final = frozenset(
    {"include[]", "timestamp_granularities[]", "keywords[]", "languages[]", "include"}
    | {"timestamp_granularities", "keywords", "languages"}
)
_CHUNKING: Final = frozenset(
    {"chunking_strategy", "chunking_strategy[type]", "chunking_strategy[threshold]"}
    | {"chunking_strategy[prefix_padding_ms]", "chunking_strategy[silence_duration_ms]"}
)
_ALLOWED: Final = _ONCE | _LISTS | _CHUNKING
_REASONS: Final = {
    "known_speaker_references[]": MEDIA,
    "known_speaker_names[]": MEDIA,
    "timestamp_granularities[][]": read.UNKNOWN,
}
_MOST_SECONDS: Final = 10_000_000


def parse_transcription(body: bytes) -> CallRequest:
    """Read a body of POST /v1/audio/transcriptions.

    Raises:
        Refusal: 400, naming the field and the reason; 413: the file is too large.
    """
    form = read_form(body)
    names = [name for name, _ in form.fields]
    for name in names:
        if name not in _ALLOWED:
            raise bad(name, _REASONS.get(name, read.UNKNOWN))
        if name not in _LISTS and names.count(name) > 1:
            raise bad(name, "it must be there once")
    once = dict(form.fields)
    model = read.model_of(once)
    if once.get("stream", "false") not in ("true", "false"):
        raise bad("stream", "it must be true or false")
    others = [(name, value) for name, value in form.fields if name != "model"]
    demand = Demand(
        prompt_bytes=sum(longest_form(value.encode()) for _, value in others),
        messages=1,
        audio=True,
        pieces=not _CHUNKING.isdisjoint(names),
        limited=False,
        kinds=frozenset({"input_audio", "cached_audio"}),
        units=Units(milliseconds=None),
        charged_by=frozenset({Unit.TOKEN, Unit.SECOND}),
    )
    boundary = secrets.token_hex(16)

    def write(offer: Offer, most: int) -> bytes:
        return write_form(boundary, [("model", offer.model.upstream_name), *others], form.file)

    return CallRequest(
        model,
        demand,
        write,
        TranscriptMeter,
        transcription_usage,
        content_type=f"multipart/form-data; boundary={boundary}",
        identity=form.identity,
    )


def transcription_usage(body: bytes, plausible: int) -> Usage | None:
    """Read the usage of a plain answer: tokens, or the seconds that are charged."""
    return _usage(as_object(usage_part(body).get("usage")), plausible)


def _usage(usage: Fields, plausible: int) -> Usage | None:
    if usage.get("type") == "duration" or "seconds" in usage:
        return Usage(0, 0, units=Units(milliseconds=_milliseconds(usage.get("seconds"))))
    found = tokens_of(usage, plausible)
    if found is None:
        return None
    return Usage(
        found.tokens_in,
        found.tokens_out,
        found.cached,
        media=found.media,
        units=Units(milliseconds=None),
    )


def _milliseconds(seconds: object) -> int | None:
    """Read a number of seconds, rounded up; None: it is none, or beyond all reason."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        exact = Decimal(repr(seconds)) * 1000
        return math.ceil(exact) if 0 < exact <= _MOST_SECONDS * 1000 else None
    except (InvalidOperation, ValueError):
        return None


class TranscriptMeter(TypedMeter):
    """Reads the events of a transcript."""

    ends = frozenset({"transcript.text.done"})

    def _measure(self, document: Fields) -> Usage | None:
        return _usage(as_object(document.get("usage")), self._plausible)


TRANSCRIPTIONS: Final = Operation(
    "/v1/audio/transcriptions",
    "/audio/transcriptions",
    Protocol.OPENAI,
    parse_transcription,
    "transcription",
    generates=False,
    max_body=MAX_FORM,
    fields=_ALLOWED | {"file"},
    form=True,
)
