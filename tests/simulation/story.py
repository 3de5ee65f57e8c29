"""What every run has: chance and time from one seed, a trace, and a bill to compare at its end."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.simulation.clockwork import Clockwork, Process

Trouble = tuple[str, Callable[[], Awaitable[None]]]


class Gone(Exception):
    """The gateway died while it served a call."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to."""

    answers: Counter[str]
    events: Counter[str]
    billed: int
    """By the providers, nano-USD."""
    charged: int
    """By the ledger, nano-USD."""
    trace: tuple[str, ...]


class Story(ABC):
    """One run."""

    seconds: float
    """How long it lasts before everything is left to settle."""
    calm: float
    """Seconds between two troubles, on average."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.loop = Clockwork()
        self.faults: list[Exception] = []
        self.trace: list[str] = []
        self.events: Counter[str] = Counter()
        self.hanging = 0
        """Callers that have no answer yet."""

    def run(self) -> Report:
        """Let it happen.

        Raises:
            Broken: a promise does not hold.
        """
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._story())
            return self._report()
        finally:
            self.loop.bury()
            asyncio.set_event_loop(None)
            self.loop.close()

    @abstractmethod
    async def _story(self) -> None:
        """Let all that happens happen."""

    @abstractmethod
    def _report(self) -> Report:
        """Compare the bill with the ledger, and say what it came to."""

    @abstractmethod
    def _broken(self) -> Iterable[asyncio.Future[None]]:
        """List what gets a database's first broken promise."""

    @abstractmethod
    def _troubles(self) -> Sequence[Trouble]:
        """List what may go wrong."""

    async def _unbroken(self, work: asyncio.Future[Any]) -> None:
        """Wait for something, unless a promise is broken before."""
        waiting: set[asyncio.Future[Any]] = {work, *self._broken()}
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()

    async def _trouble(self) -> None:
        while self.loop.now < self.seconds:
            await asyncio.sleep(self.chance.expovariate(1 / self.calm))
            name, what = self.chance.choice(self._troubles())
            self.note(name)
            await what()

    def note(self, what: str) -> None:
        """Take down what happened."""
        self.events["calls" if ": " in what else what] += 1
        self.trace.append(f"{self.loop.now:9.4f} {what}")


class Mortal:
    """A gateway process: whoever it serves hears nothing more when it is killed."""

    def __init__(self, story: Story, name: str) -> None:
        self.process = Process(name)
        self._story = story
        # In the order in which they came: a set would have another one in each process.
        self._serving: dict[asyncio.Future[None], None] = {}

    async def _do(self, work: Awaitable[None]) -> None:
        """Do something for somebody, or break off when the process dies."""
        reply: asyncio.Future[None] = self._story.loop.create_future()
        self._serving[reply] = None
        self._story.loop.start(self.process, self._run(work, reply))
        try:
            await reply
        finally:
            self._serving.pop(reply, None)

    async def _run(self, work: Awaitable[None], reply: asyncio.Future[None]) -> None:
        try:
            await work
        except Exception as error:
            self._story.faults.append(error)
        if not reply.done():
            reply.set_result(None)

    def kill(self) -> None:
        """End it between two instructions."""
        self.process.alive = False
        for reply in list(self._serving):
            if not reply.done():
                reply.set_exception(Gone())
