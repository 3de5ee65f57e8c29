"""What the simulator knows of every API: one call, and what it takes to read and answer it."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmbudget.local.http1 import Request

Body = Mapping[str, Any]
Document = dict[str, Any]

_ASKED: Final = re.compile(r"\bsearch ([0-9]{1,3}) times\b")
WORDS: Final = ("money ", "is ", "counted ", "before ", "it ", "is ", "spent ")


@dataclass(frozen=True, slots=True)
class Call:
    """One accepted call: what it is and what it will say."""

    id: str
    model: str
    mode: str
    stream: bool
    include_usage: bool
    choices: int
    tokens_in: int
    tokens_out: int
    units: Mapping[str, int]
    """Seconds, characters, images or searches that are charged."""
    kept: Any = None
    """What was read, where it is to be stored."""
    service: str | None = None
    """Service tier that it is served in; None: none was asked for."""

    @property
    def searches(self) -> int:
        """Searches of the web."""
        return self.units.get("searches", 0)

    @property
    def counts(self) -> tuple[int, int] | None:
        """Report token counts, as wrongly as the mode wants; None: not at all."""
        if self.mode == "no-usage":
            return None
        scale = {"negative-usage": -1, "absurd-usage": 10**12}.get(self.mode, 1)
        return self.tokens_in * scale, self.tokens_out * scale

    def words(self) -> list[str]:
        """Write one choice's text: a word a token."""
        each = self.tokens_out // max(1, self.choices)
        return [WORDS[index % len(WORDS)] for index in range(each)]


class Dialect(ABC):
    """One operation of one API."""

    path: str

    @abstractmethod
    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        """Find what is read: its size is the input, and it may ask for a length."""

    def limit(self, body: Body) -> int | None:
        """Find the output limit."""
        value = body.get("max_tokens")
        return None if value is None else int(value)

    def choices(self, body: Body) -> int:
        """Tell how many answers are asked for; 0: nothing is written."""
        return int(body.get("n") or 1)

    content_type = "application/json"
    """Of a whole answer."""

    def read(self, request: Request) -> Body:
        """Read a request's body."""
        body: Body = json.loads(request.body)
        return body

    def streams(self, body: Body) -> bool:
        """Tell whether events are asked for."""
        return bool(body.get("stream"))

    def units(self, body: Body) -> Mapping[str, int]:
        """Count what is charged beside tokens."""
        return {}

    def whole(self, call: Call) -> bytes:
        """Write a whole answer."""
        return json.dumps(self.plain(call)).encode()

    @abstractmethod
    def plain(self, call: Call) -> Document:
        """Write a whole answer as a document."""

    def opening(self, call: Call) -> bytes:
        """Write the events before a stream's text."""
        return b""

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        """Write one piece of a stream's text."""
        raise NotImplementedError

    def closing(self, call: Call) -> bytes:
        """Write the events after a stream's text."""
        raise NotImplementedError


def count_searches(prompt: object, most: int) -> Mapping[str, int]:
    """Search as often as the prompt asks for, once where it says nothing, within a limit."""
    asked = _ASKED.findall(json.dumps(prompt))
    return {"searches": min(most, int(asked[-1]) if asked else 1)}


def event(kind: str, **fields: object) -> bytes:
    """Write one event of a stream, named by its type."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
