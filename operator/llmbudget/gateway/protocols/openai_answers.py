"""What a provider's answer says about its tokens, plain and streamed.

A provider's figures are input like any other: a count that is missing, negative, no whole number
or beyond all reason is no measure, and the call is charged at its hold. Figures that are merely
higher than the hold are taken as they are: that is what the provider charges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from llmbudget.decide.prices import Usage

MAX_EVENT: Final = 1 << 20
"""Bytes of the largest event that is read; a stream with a larger one is passed on unread."""

_NEWLINE: Final = rb"(?:\r\n|\n|\r(?=[^\n]))"
_EVENT_END: Final = re.compile(_NEWLINE + _NEWLINE)
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_ERROR: Final = re.compile(rb'"error"\s*:\s*[{"]')
_BOM: Final = b"\xef\xbb\xbf"


def usage_of(body: bytes, plausible: int) -> Usage | None:
    """Read the usage of a plain answer; None: the answer doesn't say what it used.

    `plausible` is the highest count that is believed.
    """
    return _usage_in(_parse(body), plausible)


def cost_comment(entry_id: str, cost_usd: str) -> bytes:
    """Write the comment that ends a stream, which every SSE client skips."""
    return f": llmbudget cost_usd={cost_usd} entry_id={entry_id}\n\n".encode()


class StreamMeter:
    """Reads a stream of events as it passes, whatever the borders of its chunks.

    Send on what `feed` returns. At the end of the stream, or as soon as `done` is set, send what
    `finish` returns, settle by `usage`, and end with a comment and `last_event`. Events are passed
    on byte for byte, but for the chunk of usage figures where the caller didn't ask for it.
    """

    def __init__(self, plausible: int, *, include_usage: bool) -> None:
        self.usage: Usage | None = None
        """What the provider says it charges; None: unknown so far."""
        self.failed = False
        """The stream carried an error, or isn't a stream of events."""
        self.last_event = b""
        """`data: [DONE]` as it came, held back for the comment to go before it; empty: not seen."""
        self._plausible = plausible
        self._include_usage = include_usage
        self._buffer = bytearray()
        self._scanned = 0
        self._unread = False

    @property
    def done(self) -> bool:
        """Whether the provider said that the stream is complete. What follows is dropped."""
        return bool(self.last_event)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes and return those to send on."""
        if self.done:
            return b""
        if self._unread:
            return chunk
        self._buffer += chunk
        passed = self._take_events()
        if len(self._buffer) > MAX_EVENT:
            self._give_up()
            passed += self._flush()
        return passed

    def finish(self) -> bytes:
        """Return what the provider left without a blank line behind it."""
        rest = self._flush()
        return self._pass(rest) if rest and not self.done else b""

    def _take_events(self) -> bytes:
        passed: list[bytes] = []
        start = 0
        while not self.done:
            end = _EVENT_END.search(self._buffer, max(start, self._scanned))
            if end is None:
                break
            if end.end() - start > MAX_EVENT:
                break
            passed.append(self._pass(bytes(self._buffer[start : end.end()])))
            start = end.end()
        del self._buffer[:start]
        # An end may straddle the next chunk: look again at the last three bytes.
        self._scanned = max(0, len(self._buffer) - 3)
        return b"".join(passed)

    def _pass(self, event: bytes) -> bytes:
        """Read one event; return it, or nothing where it isn't for the caller."""
        data = _data(event)
        if data == b"[DONE]":
            self.last_event = event
            return b""
        if _ERROR.search(data):
            self.failed = self.failed or bool(_object(_parse(data)).get("error"))
        if not _USAGE.search(data):
            return event
        answer = _object(_parse(data))
        if "usage" not in answer:
            return event
        self.usage = _usage_in(answer, self._plausible)
        injected = answer.get("choices") == [] and not self._include_usage
        return b"" if injected else event

    def _give_up(self) -> None:
        """Stop reading: this is garbage, and its figures would be too."""
        self._unread = self.failed = True
        self.usage = None

    def _flush(self) -> bytes:
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return rest


def _data(event: bytes) -> bytes:
    """Join an event's data lines."""
    lines = event.removeprefix(_BOM).splitlines()
    values = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    return b"\n".join(values)


def _parse(document: bytes) -> object:
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        return None


def _object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _usage_in(answer: object, plausible: int) -> Usage | None:
    """Read the `usage` object of an answer or a chunk.

    Providers differ in what a total includes. Where the parts don't fit in it they come on top,
    and tokens of `total_tokens` that nobody explains are output: the dearer reading.
    """
    usage = _object(_object(answer).get("usage"))
    of_prompt = _object(usage.get("prompt_tokens_details"))
    of_answer = _object(usage.get("completion_tokens_details"))
    counts = [
        _count(usage.get("prompt_tokens"), plausible),
        _count(usage.get("completion_tokens"), plausible),
        _count(_given(usage, "total_tokens"), plausible),
        _count(_given(of_prompt, "cached_tokens"), plausible),
        _count(_given(of_prompt, "cache_write_tokens"), plausible),
        _count(_given(of_answer, "reasoning_tokens"), plausible),
    ]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts) or not known[0] + known[1]:
        return None
    read, written, total, cached, cache_write, reasoning = known
    read += cached + cache_write if cached + cache_write > read else 0
    written = max(written, total - read)
    written += reasoning if reasoning > written else 0
    return Usage(read, written, cached, cache_write, reasoning)


def _given(counts: Mapping[str, object], name: str) -> object:
    value = counts.get(name)
    return 0 if value is None else value


def _count(value: object, plausible: int) -> int | None:
    # Not isinstance: a bool is an int to Python.
    return value if type(value) is int and 0 <= value <= plausible else None
