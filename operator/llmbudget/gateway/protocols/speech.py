"""OpenAI's speech: text becomes sound, charged by characters or by tokens.

An answer that is sound says nothing of its tokens. Where those are charged, the provider is asked
for events, the last of which tells them, and a caller that wants sound gets what they carry.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace
from typing import Final

from llmbudget.api.provider import Protocol
from llmbudget.contract.config import Unit
from llmbudget.decide.bounds import Demand, longest_form
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.cost import MediaTokens, Units, Usage
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.fields import Fields, bad
from llmbudget.gateway.protocols.operation import CallRequest, Operation
from llmbudget.gateway.protocols.sse import TypedMeter, as_object, parse
from llmbudget.gateway.protocols.usages import tokens_of

MAX_CHARACTERS: Final = 4096
"""Of the text, as OpenAI documents."""
_PLAIN: Final = frozenset({"voice", "instructions", "response_format", "speed"})
_READ: Final = frozenset({"model", "input", "stream_format"})
_SOUNDS: Final = {
    **{"mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac"},
    **{"wav": "audio/wav", "pcm": "audio/pcm"},
}
_AUDIO_KEY: Final = b'"speech.audio.delta"'


def parse_speech(body: bytes) -> CallRequest:
    """Read a body of POST /v1/audio/speech.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    found = read.read_object(body)
    read.check(found, _READ | _PLAIN, {}, _CHECKS)
    text = found.get("input")
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_CHARACTERS:
        raise bad("input", f"it must be a string of 1 to {MAX_CHARACTERS} characters")
    events = found.get("stream_format") == "sse"
    written = b'"input":' + read.serialise(text)
    others = read.inside({key: found[key] for key in found if key in _PLAIN})
    # Some count a character beyond the basic plane as two.
    characters = len(text.encode("utf-16-le")) // 2
    demand = Demand(
        prompt_bytes=longest_form(written) + longest_form(others),
        messages=1,
        makes="Speech",
        kinds=frozenset({"output_audio"}),
        units=Units(characters=characters),
        charged_by=frozenset({Unit.TOKEN, Unit.CHARACTER}),
    )
    sound = None if events else _SOUNDS[str(found.get("response_format", "mp3"))]

    def write(offer: Offer, most: int) -> bytes:
        by_token = offer.prices is not None and offer.prices.tokens
        head = {"model": offer.model.upstream_name}
        head |= {"stream_format": "sse"} if events or by_token else {}
        return read.joined(head, written, others)

    return CallRequest(
        read.model_of(found),
        demand,
        write,
        lambda plausible: SpeechMeter(plausible, characters, sound),
        lambda _, __: Usage(0, 0, units=Units(characters=characters)),
    )


def _check_voice(value: object) -> None:
    if not isinstance(value, str):
        raise bad("voice", "it must be the name of a voice: what others cost is not known")


def _check_format(value: object) -> None:
    if value not in tuple(_SOUNDS):
        raise bad("response_format", f"it must be one of {', '.join(_SOUNDS)}")


def _check_stream_format(value: object) -> None:
    if value not in ("sse", "audio"):
        raise bad("stream_format", "it must be sse or audio")


_CHECKS: Final = {
    "voice": _check_voice,
    "response_format": _check_format,
    "stream_format": _check_stream_format,
}


class SpeechMeter(TypedMeter):
    """Reads the events of speech, and passes on the sound alone where `sound` is its type."""

    ends = frozenset({"speech.audio.done"})

    def __init__(self, plausible: int, characters: int, sound: str | None) -> None:
        super().__init__(plausible)
        self._units = Units(characters=characters)
        self._sound = sound
        self.content_type = self.content_type if sound is None else sound

    def ending(self, comment: bytes) -> bytes:
        """Events end with what they cost; sound has no place for it."""
        return super().ending(comment) if self._sound is None else b""

    def _plain(self, events: bytes) -> bool:
        return self._sound is None and super()._plain(events)

    def _read(self, data: bytes, event: bytes) -> bytes:
        passed = super()._read(data, event)
        if self._sound is None:
            return passed
        if _AUDIO_KEY not in data:
            return b""
        try:
            return base64.b64decode(str(as_object(parse(data)).get("audio")), validate=True)
        except binascii.Error:
            self.failed = True
            return b""

    def _measure(self, document: Fields) -> Usage | None:
        usage = tokens_of(as_object(document.get("usage")), self._plausible)
        if usage is None:
            # Where tokens are charged this is no measure.
            return Usage(0, 0, units=self._units)
        media = usage.media or MediaTokens(output_audio=usage.tokens_out)
        return replace(usage, media=media, units=self._units)


SPEECH: Final = Operation(
    "/v1/audio/speech",
    "/audio/speech",
    Protocol.OPENAI,
    parse_speech,
    "speech",
    generates=False,
    answers_sound=True,
    fields=_READ | _PLAIN,
)
