"""Providers that keep a bill of their own, and misbehave in every way that a provider can."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.simulation.clockwork import Clockwork

from llmbudget.contract.config import Prices
from llmbudget.gateway.breaker import Breaker
from llmbudget.gateway.connections import Doubtful, NotSent
from llmbudget.gateway.wire import Headers

DONE: Final = b"data: [DONE]\n\n"
_LIES: Final = (
    {"prompt_tokens": -5, "completion_tokens": 3},
    {"prompt_tokens": 10**12, "completion_tokens": 1},
    {"prompt_tokens": float("nan"), "completion_tokens": 1},
    {"prompt_tokens": "7", "completion_tokens": []},
    {},
)


@dataclass(slots=True)
class Bill:
    """What providers will ask for, nano-USD by the id of the hold under which it was sent."""

    costs: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    """Requests by call."""


class Answer:
    """An answer that comes bit by bit, and may break off."""

    retry_after = None

    def __init__(
        self, status: int, content_type: str, chunks: Iterator[bytes], pause: Callable[[], float]
    ) -> None:
        self.status = status
        self.content_type = content_type
        self._chunks = chunks
        self._pause = pause

    async def read_chunk(self) -> bytes | None:
        await asyncio.sleep(self._pause())
        return next(self._chunks, None)

    async def read(self) -> bytes:
        parts = []
        while (chunk := await self.read_chunk()) is not None:
            parts.append(chunk)
        return b"".join(parts)

    def close(self) -> None:
        """Nothing to let go of."""


class SimulatedProvider:
    """One provider, in place of a gateway's `Upstream`: each gateway has one, all share the bill.

    `hold_of` tells under which hold a call was sent, so that bill and ledger can be compared row
    by row.
    """

    def __init__(
        self,
        name: str,
        prices: dict[str, Prices],
        bill: Bill,
        hold_of: Callable[[str], str],
        loop: Clockwork,
        chance: random.Random,
    ) -> None:
        self.name = name
        self.breaker = Breaker(loop.time)
        self._prices = prices
        self._bill = bill
        self._hold_of = hold_of
        self._chance = chance

    async def post(
        self, path: str, body: bytes, key: str, headers: Headers, content_type: str
    ) -> Answer:
        """Take a call, as `Upstream.post`."""
        trial = self.breaker.sending()
        try:
            answer = await self._post(json.loads(body))
        except (NotSent, Doubtful):
            self.breaker.failed(trial=trial)
            raise
        if answer.status >= 500:
            self.breaker.failed(trial=trial)
        else:
            self.breaker.answered()
        return answer

    async def _post(self, asked: dict[str, Any]) -> Answer:
        what = self._chance.choices(
            ("answer", "refuse", "busy", "reject", "vanish", "timeout"), (80, 6, 4, 2, 5, 3)
        )[0]
        await asyncio.sleep(self._chance.uniform(0.001, 0.3))
        if what == "refuse":
            raise NotSent("connection refused")
        call = str(asked["messages"][0]["content"]).split()[0]
        hold = self._hold_of(call)
        self._bill.received[call] = self._bill.received.get(call, 0) + 1
        if what in ("busy", "reject"):
            return self._answer(503 if what == "busy" else 400, {"error": {"message": what}})
        tokens = self._generate(asked, hold)
        await asyncio.sleep(self._chance.uniform(0.01, 3.0))
        if what == "vanish":
            raise Doubtful("the connection broke")
        if what == "timeout":
            return self._answer(504, {"error": {"message": what}})
        usage = tokens if self._chance.random() < 0.95 else self._chance.choice(_LIES)
        if asked.get("stream"):
            return self._stream(usage)
        return self._answer(200, {"choices": [], "usage": usage})

    def _generate(self, asked: dict[str, Any], hold: str) -> dict[str, int]:
        """Do the work, and bill it: nothing undoes that."""
        prices = self._prices[asked["model"]]
        most = int(asked.get("max_tokens") or asked["max_completion_tokens"])
        read = self._chance.randint(1, len(asked["messages"][0]["content"]))
        written = self._chance.randint(0, most)
        if hold in self._bill.costs:
            raise AssertionError(f"two requests under one hold: {hold}")
        self._bill.costs[hold] = int(read * prices.input + written * prices.output)
        return {"prompt_tokens": read, "completion_tokens": written}

    def _answer(self, status: int, document: object) -> Answer:
        body = json.dumps(document).encode()
        return Answer(status, "application/json", iter([body]), lambda: 0.0)

    def _stream(self, usage: object) -> Answer:
        text = {"choices": [{"index": 0, "delta": {"content": "word "}}]}
        chunks = [_event(text)] * self._chance.randint(1, 12)
        chunks += [_event({"choices": [], "usage": usage}), DONE]
        if self._chance.random() < 0.07:
            chunks = chunks[: self._chance.randrange(len(chunks))]
        return Answer(
            200, "text/event-stream", iter(chunks), lambda: self._chance.uniform(0.0, 0.4)
        )


def _event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
