"""What the answers of chat and text completions say about their tokens, plain and streamed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from llmbudget.decide.cost import Usage
from llmbudget.gateway.protocols.sse import EventMeter, as_object, parse, usage_part
from llmbudget.gateway.protocols.usages import served, tokens_of

_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_CONTENT: Final = re.compile(rb'"choices"\s*:\s*\[\s*\{')
_ERROR: Final = re.compile(rb'"error"\s*:\s*[{"]')


def usage_of(body: bytes, plausible: int, service: str | None = None) -> Usage | None:
    """Read the usage of a plain answer; None: the answer doesn't say what it used.

    `plausible` is the highest count that is believed, `service` the tier that was asked for.
    """
    return usage_in(usage_part(body), plausible, service)


class ChatMeter(EventMeter):
    """Reads chunks. The chunk of usage figures is kept back where the caller didn't ask for it."""

    def __init__(self, plausible: int, *, include_usage: bool, service: str | None = None) -> None:
        super().__init__(plausible)
        self._service = service
        self._include_usage = include_usage

    def _plain(self, events: bytes) -> bool:
        if self.usage is not None:
            return False
        return b"usage" not in events and b"error" not in events and b"[DONE]" not in events

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
        self.usage = usage_in(answer, self._plausible, self._service)
        injected = answer.get("choices") == [] and not self._include_usage
        return b"" if injected else event


def usage_in(
    answer: Mapping[str, object], plausible: int, service: str | None = None
) -> Usage | None:
    """Read the `usage` object of an answer or a chunk."""
    usage = tokens_of(as_object(answer.get("usage")), plausible, "prompt", "completion")
    return served(usage, service, answer.get("service_tier"))
