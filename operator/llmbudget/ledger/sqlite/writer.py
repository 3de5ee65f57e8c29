"""Group commit: one thread runs whatever has queued up as one transaction.

While it commits, the next group gathers, so that the cost of an fsync is shared by all the calls
that waited for it. A call is answered after the commit that holds its operation.

A call that is alone does not wait for the event loop to wake up and come round: the loop itself
waits for the commit, while nobody else has to. It waits for no disk that hangs: after a moment it
goes on without, and for a while it waits for none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from llmbudget.ledger.book import Book
from llmbudget.ledger.feed import Committed
from llmbudget.ledger.interface import LedgerError, LedgerUnavailable
from llmbudget.ledger.queue import Queue
from llmbudget.ledger.sqlite.store import Store

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 1.0
"""How often an idle ledger looks whether the period has turned."""
PATIENCE_SECONDS: Final = 0.02
"""How long the event loop waits for the commit of a call that is alone."""
IMPATIENCE_SECONDS: Final = 1.0
"""How long it waits for no commit after one that took longer."""


@dataclass(slots=True)
class Operation:
    """One thing to do to the book, and who waits for its result."""

    run: Callable[[Book], object]
    durable: bool
    brief: bool
    """Whether it is about one call alone."""
    future: asyncio.Future[Any]
    result: object = None
    error: Exception | None = None


class Writer(Thread):
    """The thread that owns the store."""

    def __init__(
        self,
        store: Store,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        publish: Callable[[Committed], None],
    ) -> None:
        super().__init__(name=f"ledger {path}", daemon=True)
        self.commits = 0
        """Transactions so far."""
        self._store = store
        self._path = path
        self._loop = loop
        self._publish = publish
        self._queue: Queue[Operation] = Queue(loop, self._at_once)
        self._unanswered = 0
        """Operations that were handed over; counted in the event loop."""
        self._done: SimpleQueue[tuple[list[Operation], Committed | None]] = SimpleQueue()
        """Groups that the thread has committed and the event loop was not told of, in order."""
        self._waiting = False
        """Whether the event loop waits for them and needs no other word."""
        self._at_most_one_hold = True
        """After the last commit."""
        self._impatient_until = 0.0

    def submit(self, operation: Operation) -> None:
        """Queue an operation; its future is resolved in the event loop."""
        self._queue.put(operation)

    def stop(self) -> None:
        """Let the thread end when everything that is queued now is committed."""
        self._queue.end()

    def run(self) -> None:
        """Commit group after group until told to stop."""
        going = True
        while going:
            group, going = self._queue.take(IDLE_SECONDS)
            committed = self._commit(group)
            self._at_most_one_hold = self._store.at_most_one_hold
            if group or committed is not None:
                self._done.put((group, committed))
                # In this order: a loop that stops waiting looks for what was put before.
                if not self._waiting and not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._receive)
        self._store.close()

    def _at_once(self, turn: list[Operation]) -> bool:
        """Wait here, in the event loop, for what is asked for one call while no other waits, and
        one has a hold at most: its own, or a stream's that is kept waiting for as long."""
        self._unanswered += len(turn)
        if self._unanswered > 1 or not turn[0].brief or not self._at_most_one_hold:
            return False
        now = time.monotonic()
        if now < self._impatient_until:
            return False
        deadline = now + PATIENCE_SECONDS
        self._waiting = True
        self._queue.hand_over(turn)
        try:
            self._answer_until(deadline)
        finally:
            self._waiting = False
        self._receive()
        return True

    def _answer_until(self, deadline: float) -> None:
        while self._unanswered:
            try:
                done = self._done.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                self._impatient_until = time.monotonic() + IMPATIENCE_SECONDS
                return
            self._answer(*done)

    def _commit(self, group: list[Operation]) -> Committed | None:
        try:
            return self._transact(group)
        except Exception as error:
            # The edge of the thread: a fault in one group must not end the ledger. Nothing of
            # the group was committed.
            unavailable = error if isinstance(error, LedgerUnavailable) else None
            if unavailable is None:
                logger.exception("%s: a group of operations failed", self._path)
            for operation in group:
                operation.error = unavailable or LedgerUnavailable(f"{self._path}: {error!r}")
            return None

    def _transact(self, group: list[Operation]) -> Committed | None:
        with self._store.transaction(durable=any(found.durable for found in group)) as book:
            for operation in group:
                try:
                    operation.result = operation.run(book)
                except (LedgerError, ValueError) as error:
                    operation.error = error
            committed = Committed.by(book)
        self.commits += 1
        return committed

    def _receive(self) -> None:
        """Tell what the thread has committed."""
        while True:
            try:
                done = self._done.get_nowait()
            except Empty:
                return
            self._answer(*done)

    def _answer(self, group: list[Operation], committed: Committed | None) -> None:
        self._unanswered -= len(group)
        if committed is not None:
            self._publish(committed)
        for operation in group:
            if operation.future.done():
                continue
            if operation.error is not None:
                operation.future.set_exception(operation.error)
            else:
                operation.future.set_result(operation.result)
