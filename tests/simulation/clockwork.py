"""An event loop whose time is told by what happens, and processes in it that can be killed.

Nothing waits: where all tasks sleep, the loop's clock jumps to the first that wakes. So a run of
minutes takes milliseconds, and the same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, Final


class Stuck(Exception):
    """Somebody waits for what will never happen."""


@dataclass(eq=False, slots=True)
class Process:
    """What is killed at once: its tasks run no further, not even to clean up at their end."""

    name: str
    alive: bool = True
    tasks: list[asyncio.Task[Any]] = field(default_factory=list, repr=False)


_MOST_TURNS: Final = 100_000
_CURRENT: Final[ContextVar[Process | None]] = ContextVar("process", default=None)


class _Jumping(selectors.SelectSelector):
    """Waits for no file: it moves the clock on."""

    loop: Clockwork
    _turns = 0
    """Since the clock moved."""

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("all tasks wait, and nothing is left to happen")
        self._turns = 0 if timeout > 0 else self._turns + 1
        if self._turns > _MOST_TURNS:
            raise Stuck("tasks run on and on, and the clock stands still")
        self.loop.now += max(0.0, timeout)
        return []


class Clockwork(asyncio.SelectorEventLoop):
    """The loop. `now` is its time in seconds."""

    def __init__(self) -> None:
        selector = _Jumping()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-9
        self.now = 0.0
        self._started: list[asyncio.Task[Any]] = []

    def time(self) -> float:
        return self.now

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        context = copy_context() if context is None else context
        return super().call_soon(_guarded(callback, context), *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        context = copy_context() if context is None else context
        return super().call_at(when, _guarded(callback, context), *args, context=context)

    def start(self, process: Process, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something as a part of a process."""
        context = copy_context()
        context.run(_CURRENT.set, process)
        task = self.create_task(work, context=context)
        process.tasks.append(task)
        self._started.append(task)
        return task

    def bury(self) -> None:
        """Let go of what was killed or is left over, without letting it run on."""
        buried: set[asyncio.Task[Any]] = set()
        # A block that is ended makes a task to end what it began: in this loop, to be buried too.
        asyncio._set_running_loop(self)
        try:
            while tasks := asyncio.all_tasks(self) - buried:
                buried |= tasks
                for task in tasks:
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _close(task.get_coro())
        finally:
            asyncio._set_running_loop(None)
        for task in self._started:
            if task.done() and not task.cancelled():
                # Nobody else asks what it failed by, and asyncio would tell the log at any time.
                task.exception()


def _close(coroutine: Any) -> None:
    """End a coroutine; one that still waits for something at its end is ended there again."""
    for _ in range(10):
        try:
            coroutine.close()
        except RuntimeError:
            continue
        return


def _guarded(callback: Callable[..., Any], context: Context) -> Callable[..., Any]:
    process = context.get(_CURRENT)
    if process is None:
        return callback

    def run(*args: Any) -> None:
        if process.alive:
            callback(*args)

    return run
