"""Server-sent events as they pass: cut at their ends, whatever the borders of the chunks."""

from __future__ import annotations

import contextlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic_core import from_json

from llmbudget.decide.cost import Usage

MAX_EVENT: Final = 1 << 20
"""Bytes of the largest event that is read; a stream with a larger one is passed on unread."""

_NEWLINE: Final = rb"(?:\r\n|\n|\r(?=[^\n]))"
_EVENT_END: Final = re.compile(_NEWLINE + _NEWLINE)
_ENDS: Final = (b"\n\n", b"\r\n\r\n")
_USAGE_KEY: Final = re.compile(rb'"usage"\s*:\s*(?=\{)')
_MOST_USAGE: Final = 4096
"""Bytes of the longest `usage` object that is read of a large answer."""
_BOM: Final = b"\xef\xbb\xbf"


def cost_comment(entry_id: str, cost_usd: str) -> bytes:
    """Write the comment that ends a stream, which every SSE client skips."""
    return f": llmbudget cost_usd={cost_usd} entry_id={entry_id}\n\n".encode()


class EventMeter(ABC):
    """Reads a stream of events on its way.

    Send on what `feed` returns. At the end of the stream, or as soon as `done` is set, send what
    `finish` returns, settle by `usage`, and end with a comment and `last_event`. Events are passed
    on byte for byte, but for those that a protocol keeps back.
    """

    max_event: ClassVar[int] = MAX_EVENT
    """Bytes of the largest event that is read."""
    open_ended = False
    """Whether it is the end of the answer that ends it, and no event."""

    def __init__(self, plausible: int) -> None:
        self.content_type = "text/event-stream; charset=utf-8"
        """Of what is sent on."""
        self.usage: Usage | None = None
        """What the provider says it charges; None: unknown so far."""
        self.failed = False
        """The stream carried an error, or isn't a stream of events."""
        self.last_event = b""
        """The event that ends the stream, as it came, held back for the comment to go before it;
        empty: not seen."""
        self._plausible = plausible
        self._buffer = bytearray()
        self._scanned = 0
        self.unread = False
        """An event was too large: what comes is passed on as it is, no longer event by event."""

    @property
    def done(self) -> bool:
        """Whether the provider said that the stream is complete. What follows is dropped."""
        return bool(self.last_event)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes and return those to send on."""
        if self.done:
            return b""
        if self.unread:
            return chunk
        if not self._buffer and chunk.endswith(_ENDS) and self._plain(chunk):
            return chunk
        self._buffer += chunk
        passed = self._take_events()
        if len(self._buffer) > self.max_event:
            self._give_up()
            passed += self._flush()
        return passed

    def finish(self) -> bytes:
        """Return what the provider left without a blank line behind it."""
        rest = self._flush()
        return self._pass(rest) if rest and not self.done else b""

    def ending(self, comment: bytes) -> bytes:
        """Return what is sent last, once the call is charged; `comment` tells what."""
        return comment + self.last_event if self.last_event else b""

    def _plain(self, events: bytes) -> bool:
        """Tell that whole events have nothing to be read, without cutting them apart: nearly all
        of a stream. It must not be true of one that `_read` would not return as it is."""
        return False

    @abstractmethod
    def _read(self, data: bytes, event: bytes) -> bytes:
        """Read one event by its data; return what of it is for the caller. An event that ends the
        stream goes to `last_event`."""

    def _take_events(self) -> bytes:
        passed: list[bytes] = []
        start = 0
        while not self.done:
            end = _EVENT_END.search(self._buffer, max(start, self._scanned))
            if end is None:
                break
            if end.end() - start > self.max_event:
                break
            passed.append(self._pass(bytes(self._buffer[start : end.end()])))
            start = end.end()
        del self._buffer[:start]
        # An end may straddle the next chunk: look again at the last three bytes.
        self._scanned = max(0, len(self._buffer) - 3)
        return b"".join(passed)

    def _pass(self, event: bytes) -> bytes:
        return self._read(_data(event), event)

    def _give_up(self) -> None:
        """Stop reading: this is garbage, and its figures would be too."""
        self.unread = self.failed = True
        self.usage = None

    def _flush(self) -> bytes:
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return rest


class TypedMeter(EventMeter):
    """Reads events that name their type in their data, of which the last tells the usage."""

    ends: frozenset[str]
    """Types of the event that ends the stream."""

    def _plain(self, events: bytes) -> bool:
        return b"error" not in events and not any(end.encode() in events for end in self.ends)

    def _read(self, data: bytes, event: bytes) -> bytes:
        if b'"type"' not in data:
            return event
        if not any(end.encode() in data for end in self.ends) and b'"error"' not in data:
            return event
        document = as_object(parse(data))
        kind = document.get("type")
        if kind == "error":
            self.failed = True
        if kind not in self.ends:
            return event
        self.usage = self._measure(document)
        self.last_event = event
        return b""

    @abstractmethod
    def _measure(self, document: Mapping[str, object]) -> Usage | None:
        """Read the usage of the last event."""


class RawMeter(EventMeter):
    """For an answer that is no events, such as sound: it is passed on as it comes, and what it
    costs is known beforehand."""

    def __init__(self, usage: Usage | None, content_type: str) -> None:
        super().__init__(0)
        self.usage = usage
        self.content_type = content_type
        self.unread = self.open_ended = True

    def _read(self, data: bytes, event: bytes) -> bytes:
        raise AssertionError("nothing is read of it")


class NoMeter(EventMeter):
    """For operations that have no streams: whatever comes is passed on, and is no measure."""

    def _read(self, data: bytes, event: bytes) -> bytes:
        return event


def parse(document: bytes) -> object:
    """Parse what a provider says; None: it is no JSON."""
    with contextlib.suppress(ValueError):
        found: object = from_json(document)
        return found
    try:
        # More is taken here, such as half of a character where a token limit cut it.
        return json.loads(document)
    except (ValueError, RecursionError):
        return None


def usage_part(body: bytes) -> Mapping[str, object]:
    """Read a plain answer, or of a large one only its usage: parsing megabytes of vectors or text
    takes the time of everybody else's calls, and the figures stand near the end."""
    if len(body) <= MAX_EVENT:
        return as_object(parse(body))
    # In a text its quotes would be escaped, so this is a key. Where there are several, one may be
    # the caller's own, such as a property of a tool that the answer repeats.
    found = [match.end() for match in _USAGE_KEY.finditer(body)]
    if len(found) != 1:
        return {}
    try:
        text = body[found[0] : found[0] + _MOST_USAGE].decode(errors="replace")
        usage, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return {}
    return {"usage": usage}


def as_object(value: object) -> Mapping[str, object]:
    """Take an object as it is, and all else as an empty one."""
    return value if isinstance(value, dict) else {}


def count(value: object, plausible: int) -> int | None:
    """Read a token count; None: it is no count, or beyond all reason."""
    # Not isinstance: a bool is an int to Python.
    return value if type(value) is int and 0 <= value <= plausible else None


def given(counts: Mapping[str, object], name: str) -> object:
    """Read a count that may be left out, which means 0."""
    value = counts.get(name)
    return 0 if value is None else value


def _data(event: bytes) -> bytes:
    """Join an event's data lines."""
    lines = event.removeprefix(_BOM).splitlines()
    values = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    return b"\n".join(values)
