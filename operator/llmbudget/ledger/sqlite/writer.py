"""Group commit: one thread runs whatever has queued up as one transaction.

While it commits, the next group gathers, so that the cost of an fsync is shared by all the calls
that waited for it. A call is answered after the commit that holds its operation.

A call that is alone does not wait for a thread to wake up, twice: what it asks for is committed in
the event loop, where nobody else has to wait meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Final

from llmbudget.ledger.book import Book
from llmbudget.ledger.feed import Committed
from llmbudget.ledger.interface import LedgerError, LedgerUnavailable
from llmbudget.ledger.queue import Queue
from llmbudget.ledger.sqlite.store import Store

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 1.0
"""How often an idle ledger looks whether the period has turned."""


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
        self._using = Lock()
        """Held by whoever uses the store."""
        self._sent = self._received = 0
        """Commits of the thread that the event loop is told of, counted by either side: what it is
        told late must not replace what it committed since."""

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
            with self._using:
                committed = self._commit(group)
                if (group or committed is not None) and not self._loop.is_closed():
                    self._sent += 1
                    self._loop.call_soon_threadsafe(self._receive, group, committed)
        self._store.close()

    def _at_once(self, turn: list[Operation]) -> bool:
        """Commit here, in the event loop, what is asked for one call while no other waits, and one
        has a hold at most: its own, or a stream's that is kept waiting for as long as the disk
        takes."""
        self._unanswered += len(turn)
        if self._unanswered > 1 or not turn[0].brief or not self._using.acquire(blocking=False):
            return False
        try:
            if self._sent != self._received or not self._store.at_most_one_hold:
                return False
            committed = self._commit(turn)
        finally:
            self._using.release()
        self._answer(turn, committed)
        return True

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

    def _receive(self, group: list[Operation], committed: Committed | None) -> None:
        self._received += 1
        self._answer(group, committed)

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
