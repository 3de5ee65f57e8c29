"""What a provider's answer says about its tokens, plain and streamed.

A provider's figures are input like any other: a count that is missing, negative, no whole number
or beyond all reason is no measure, and the call is charged at its hold. Figures that are merely
higher than the hold are taken as they are: that is what the provider charges.
"""

from __future__ import annotations

import re
from typing import Final

from llmbudget.decide.prices import Usage
from llmbudget.gateway.protocols.sse import EventMeter, as_object, count, given, parse, usage_part

_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_CONTENT: Final = re.compile(rb'"choices"\s*:\s*\[\s*\{')
_ERROR: Final = re.compile(rb'"error"\s*:\s*[{"]')


def usage_of(body: bytes, plausible: int) -> Usage | None:
    """Read the usage of a plain answer; None: the answer doesn't say what it used.

    `plausible` is the highest count that is believed.
    """
    return usage_in(usage_part(body), plausible)


class ChatMeter(EventMeter):
    """Reads chunks. The chunk of usage figures is kept back where the caller didn't ask for it."""

    def __init__(self, plausible: int, *, include_usage: bool) -> None:
        super().__init__(plausible)
        self._include_usage = include_usage

    def _read(self, data: bytes, event: bytes) -> bytes:
        if data == b"[DONE]":
            self.last_event = event
            return b""
        if _ERROR.search(data):
            self.failed = self.failed or bool(as_object(parse(data)).get("error"))
        if not _USAGE.search(data):
            # Content after the figures: they were not the last ones.
            self.usage = None if _CONTENT.search(data) else self.usage
            return event
        answer = as_object(parse(data))
        if "usage" not in answer:
            return event
        self.usage = usage_in(answer, self._plausible)
        injected = answer.get("choices") == [] and not self._include_usage
        return b"" if injected else event


def usage_in(answer: object, plausible: int) -> Usage | None:
    """Read the `usage` object of an answer or a chunk.

    Providers differ in what a total includes. Where the parts don't fit in it they come on top,
    and tokens of `total_tokens` that nobody explains are output: the dearer reading. So are all
    beside the prompt's where a count is left out: Gemini leaves out what is 0, and its thoughts
    stand in no other figure than the total.
    """
    usage = as_object(as_object(answer).get("usage"))
    of_prompt = as_object(usage.get("prompt_tokens_details"))
    of_answer = as_object(usage.get("completion_tokens_details"))
    left_out = None if usage.get("total_tokens") is None else 0
    counts = [
        count(usage.get("prompt_tokens"), plausible),
        count(usage.get("completion_tokens", left_out), plausible),
        count(given(usage, "total_tokens"), plausible),
        count(given(of_prompt, "cached_tokens"), plausible),
        count(given(of_prompt, "cache_write_tokens"), plausible),
        count(given(of_answer, "reasoning_tokens"), plausible),
    ]
    known = [found for found in counts if found is not None]
    if len(known) < len(counts) or not known[0] + known[1]:
        return None
    read, written, total, cached, cache_write, reasoning = known
    read += cached + cache_write if cached + cache_write > read else 0
    written = max(written, total - read)
    written += reasoning if reasoning > written else 0
    return Usage(read, written, cached, cache_write, reasoning)
