"""A bench for queues, whose clock is the test's own: where nothing is left to do it goes straight
to the next timer, so that backoff costs no time and an order can be relied upon."""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable

from llmbudget.reconcile.queue import Failed, WorkQueue

Scenario = Callable[["Bench"], Awaitable[None]]


class _Selector(selectors.DefaultSelector):
    """Lets the clock pass instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "everything waits, and nothing will happen"
            self.now += timeout
        return found


class Loop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps."""

    def __init__(self) -> None:
        self._jumping = _Selector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds since the test began, by its own clock."""
        return self._jumping.now


class Bench:
    """A queue with work that is written down."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.busiest = 0
        self.failing: Counter[str] = Counter()
        """How many more times a key fails."""
        self.during: dict[str, Callable[[], Awaitable[None]]] = {}
        """What else a key's work does, the first time."""
        self.queue = self.make(3)

    def make(self, workers: int, failed: Failed | None = None) -> WorkQueue:
        self.queue = WorkQueue("bench", self._work, workers=workers, failed=failed)
        return self.queue

    async def _work(self, key: str) -> None:
        self.started.append(key)
        self.running[key] += 1
        self.most[key] = max(self.most[key], self.running[key])
        self.busiest = max(self.busiest, self.running.total())
        try:
            if key in self.during:
                await self.during.pop(key)()
            await asyncio.sleep(0.001)
            if self.failing[key] > 0:
                self.failing[key] -= 1
                raise ValueError(f"{key} is poisoned")
        finally:
            self.running[key] -= 1

    async def work_for(self, seconds: float) -> None:
        """Let the queue run, by its own clock."""
        task = asyncio.create_task(self.queue.run())
        await asyncio.sleep(seconds)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def on_bench(scenario: Scenario) -> Bench:
    async def run() -> Bench:
        bench = Bench()
        await scenario(bench)
        return bench

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(run())
