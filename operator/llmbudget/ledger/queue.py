"""Operations on their way from an event loop to the thread that commits them.

What one turn of the loop asks for is handed over at once, at the turn's end: the thread is woken
once for all of it, and commits it as one group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, Generic, TypeVar

GROUP: Final = 512
"""Operations that are enough for one transaction."""

Operation = TypeVar("Operation")


class Queue(Generic[Operation]):
    """A queue from one event loop to one thread.

    `at_once` is offered what a turn of the loop asked for, and takes it by returning True.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        at_once: Callable[[list[Operation]], bool] = lambda _: False,
    ) -> None:
        self._loop = loop
        self._at_once = at_once
        self._turn: list[Operation] = []
        self._turns: SimpleQueue[list[Operation] | None] = SimpleQueue()

    def put(self, operation: Operation) -> None:
        """Queue an operation."""
        self._turn.append(operation)
        if len(self._turn) == 1:
            self._loop.call_soon(self._hand_over)

    def hand_over(self, turn: list[Operation]) -> None:
        """Give the thread something now."""
        self._turns.put(turn)

    def end(self) -> None:
        """Let the thread end when it has taken everything that is queued now."""
        self._hand_over()
        self._turns.put(None)

    def _hand_over(self) -> None:
        turn, self._turn = self._turn, []
        if turn and not self._at_once(turn):
            self._turns.put(turn)

    def take(self, seconds: float) -> tuple[list[Operation], bool]:
        """Wait so long for work, and take what else is there; tell whether there may be more."""
        group: list[Operation] = []
        try:
            turn = self._turns.get(timeout=seconds)
            while turn is not None:
                group += turn
                if len(group) >= GROUP:
                    return group, True
                turn = self._turns.get_nowait()
        except Empty:
            return group, True
        return group, False
