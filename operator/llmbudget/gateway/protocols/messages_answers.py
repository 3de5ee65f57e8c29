"""What Anthropic's answers say about their tokens, plain and streamed.

`input_tokens` leaves out what was read from and written to the cache. In a stream the first event
tells of the input and the last but one of the output, cumulative. Where an event tells a lower
count than one before it, such as no input, the higher one holds.
"""

from __future__ import annotations

import re
from typing import Final

from llmbudget.decide.cost import Units, Usage
from llmbudget.gateway.protocols.fields import Fields
from llmbudget.gateway.protocols.sse import EventMeter, as_object, count, given, parse, usage_part
from llmbudget.gateway.protocols.usages import reported_cost

_RESULT: Final = re.compile(rb'"type"\s*:\s*"web_search_tool_result"')
_MARKS: Final = (b'"usage"', b'"message_stop"', b'"error"', b'"web_search_tool_result"')

_SEARCHES: Final = "server_tool_use"
_LATER: Final = (_SEARCHES, "output_tokens")
_ANYWHERE: Final = "global"
_NOWHERE: Final = "not_available"
"""What models answer as `inference_geo` that run at no chosen place."""


def message_usage(body: bytes, plausible: int, *, for_an_hour: bool = False) -> Usage | None:
    """Read the usage of a plain answer; None: the answer doesn't say what it used.

    `for_an_hour`: the caller asked for a cache that lasts so long, so what was written counts as
    that unless the answer says otherwise.
    """
    searches = len(_RESULT.findall(body))
    usage = as_object(usage_part(body).get("usage"))
    return _usage(usage, plausible, searches, for_an_hour=for_an_hour)


class MessageMeter(EventMeter):
    """Reads the events of a message."""

    def __init__(self, plausible: int, *, for_an_hour: bool = False) -> None:
        super().__init__(plausible)
        self._for_an_hour = for_an_hour
        self._counts: dict[str, object] = {}
        """Counts so far; the output's are known only once a message_delta has told them."""
        self._searches = 0

    def _plain(self, events: bytes) -> bool:
        return not any(mark in events for mark in _MARKS)

    def _read(self, data: bytes, event: bytes) -> bytes:
        if not any(mark in data for mark in _MARKS):
            return event
        document = as_object(parse(data))
        kind = document.get("type")
        if kind == "message_stop":
            self.last_event = event
            return b""
        if kind == "content_block_start" and _RESULT.search(data):
            self._searches += 1
        elif kind == "error":
            self.failed = True
        elif kind == "message_start":
            counts = as_object(as_object(document.get("message")).get("usage"))
            # Of searches and output it says what was there at the start: only the end knows.
            self._take({name: counts[name] for name in counts if name not in _LATER})
        elif kind == "message_delta":
            self._take(as_object(document.get("usage")))
            self.usage = _usage(
                self._counts, self._plausible, self._searches, for_an_hour=self._for_an_hour
            )
        return event

    def _take(self, counts: Fields) -> None:
        self._counts = _highest(self._counts, counts)


def _highest(before: Fields, after: Fields) -> dict[str, object]:
    """Join cumulative figures, of which none can fall; those of a part one by one."""
    joined = dict(before)
    for name, value in after.items():
        known = before.get(name)
        if isinstance(value, dict):
            joined[name] = _highest(as_object(known), value)
        elif type(value) is type(known) is int:
            joined[name] = max(known, value)
        elif value is not None:
            joined[name] = value
    return joined


def _usage(usage: Fields, plausible: int, searches: int, *, for_an_hour: bool) -> Usage | None:
    """Read the figures; `searches` are those that the answer shows, where no figure tells them."""
    told = as_object(usage.get(_SEARCHES)).get("web_search_requests")
    geo = usage.get("inference_geo") or _ANYWHERE
    by_life = as_object(usage.get("cache_creation"))
    counts = [
        count(usage.get("input_tokens"), plausible),
        count(usage.get("output_tokens"), plausible),
        count(given(usage, "cache_read_input_tokens"), plausible),
        count(given(usage, "cache_creation_input_tokens"), plausible),
        count(given(by_life, "ephemeral_5m_input_tokens"), plausible),
        count(given(by_life, "ephemeral_1h_input_tokens"), plausible),
        count(searches if told is None else told, plausible),
    ]
    known = [found for found in counts if found is not None]
    if len(known) < len(counts) or not sum(known[:4]) or not isinstance(geo, str):
        return None
    read, written, cached, cache_write, minutes, an_hour, searched = known
    # Parts that don't fit in their total come on top of it: the dearer reading.
    cache_write = max(cache_write, minutes + an_hour)
    an_hour = cache_write - minutes if for_an_hour else an_hour
    return Usage(
        tokens_in=read + cached + cache_write,
        tokens_out=written,
        cached=cached,
        cache_write=cache_write,
        cache_write_hour=an_hour,
        units=Units(searches=searched) if searched else None,
        services=() if geo in (_ANYWHERE, _NOWHERE) else (geo,),
        reported=reported_cost(usage),
    )
