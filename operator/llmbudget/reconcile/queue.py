"""A queue of keys: each once, each worked on by one worker at a time, failures tried again later.

A key that is added while it is being worked on is worked on once more. Failures back off
exponentially, each key for itself, so that a poisoned resource delays no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from llmbudget.telemetry import operator_metrics as metrics

log = logging.getLogger(__name__)

_FIRST_SECONDS: Final = 0.2
_LONGEST_SECONDS: Final = 300.0
_IMPATIENCE_SECONDS: Final = 2.0
"""How long an event must wait at most for a key whose work has failed."""

Work = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of the work on a key."""

    error: Exception
    tries: int
    """How often it was tried in a row."""
    pause: float
    """Seconds until the next try."""


Failed = Callable[[str, Failure], Awaitable[None]]


class WorkQueue:
    """Works on keys as they become due."""

    def __init__(
        self, name: str, work: Work, *, workers: int, failed: Failed | None = None
    ) -> None:
        self._name = name
        self._work = work
        self._failed = failed
        self._workers = workers
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._running: set[str] = set()
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._awaited = math.inf
        """When the workers that have nothing to do look again by themselves."""
        self._changed = asyncio.Event()
        self._waited = metrics.WAITED.labels(name)
        self._worked = metrics.WORKED.labels(name)
        self._retries = metrics.RETRIES.labels(name)

    def add(self, key: str, delay: float = 0.0) -> None:
        """Make a key due in `delay` seconds, or earlier where it already is.

        A key that keeps failing is not hurried along by its own events: it waits a little.
        """
        now = asyncio.get_running_loop().time()
        due = max(now + delay, min(self._not_before.get(key, now), now + _IMPATIENCE_SECONDS))
        if self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))
        if due < self._awaited:
            self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        time = asyncio.get_running_loop().time
        depth = metrics.DEPTH.labels(self._name)
        depth.set_function(lambda: sum(due <= time() for due in self._due.values()))
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._next()
            self._running.add(key)
            try:
                with self._worked.time():
                    await self._work(key)
            except Exception as error:
                # The edge of one key's work: whatever went wrong, the others go on.
                await self._retry(key, error)
            else:
                self._failures.pop(key, None)
                self._not_before.pop(key, None)
            finally:
                self._running.discard(key)
                if key in self._due:
                    self._changed.set()

    async def _next(self) -> str:
        """Wait for a key that is due and that nobody works on."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            waiting: list[tuple[float, str]] = []
            found: str | None = None
            while self._heap and self._heap[0][0] <= loop.time():
                due, key = heapq.heappop(self._heap)
                if self._due.get(key) != due:
                    continue
                if key in self._running:
                    waiting.append((due, key))
                    continue
                found = key
                break
            # Keys that are being worked on wait for their worker, which wakes all.
            self._awaited = self._heap[0][0] if self._heap else math.inf
            for item in waiting:
                heapq.heappush(self._heap, item)
            if found is not None:
                self._waited.observe(loop.time() - self._due.pop(found))
                return found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if math.isinf(self._awaited) else self._awaited):
                    await self._changed.wait()

    async def _retry(self, key: str, error: Exception) -> None:
        self._retries.inc()
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        pause = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(count, 16))
        pause *= random.uniform(0.8, 1.2)  # noqa: S311
        fields = {"queue": self._name, "key": key, "retry_seconds": round(pause, 1)}
        # The message only: a traceback of a conflict helps nobody.
        log.warning("failed: %s", error, extra={"fields": fields}, exc_info=_unexpected(error))
        if self._failed is not None:
            try:
                await self._failed(key, Failure(error, count + 1, pause))
            except Exception as other:
                log.warning("failure not reported: %s", other, extra={"fields": fields})
        self._not_before[key] = asyncio.get_running_loop().time() + pause
        # Its events while it failed are no reason to come back sooner.
        self._due.pop(key, None)
        self.add(key, pause)


def _unexpected(error: Exception) -> bool:
    return not type(error).__module__.startswith("llmbudget")
