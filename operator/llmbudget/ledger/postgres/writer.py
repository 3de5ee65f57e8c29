"""Group commit: one thread runs whatever has queued up as one transaction.

While it commits, the next group gathers, so that round trips, the lock and the flush to disk are
shared by all the calls that waited for them. A call is answered after the commit that holds its
operation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final

import psycopg

from llmbudget.ledger.book import Book
from llmbudget.ledger.feed import Committed
from llmbudget.ledger.interface import LedgerError, LedgerUnavailable
from llmbudget.ledger.operations import Subject
from llmbudget.ledger.postgres.store import Store
from llmbudget.ledger.queue import Queue

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 1.0
"""How often an idle ledger looks what others committed and whether the month has turned."""


@dataclass(slots=True)
class Operation:
    """One thing to do to the book, and who waits for its result."""

    run: Callable[[Book], object]
    about: Subject
    future: asyncio.Future[Any]
    result: object = None
    error: Exception | None = None


class Writer(Thread):
    """The thread that owns the store."""

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        publish: Callable[[Committed], None],
    ) -> None:
        super().__init__(name="ledger", daemon=True)
        self.commits = 0
        """Groups so far."""
        self.problem: str | None = "the database was not asked yet"
        """Why the last transaction could not be made; None: it was."""
        self.was_last = False
        """Whether it left no other owner behind when it ended."""
        self._store = store
        self._loop = loop
        self._publish = publish
        self._queue: Queue[Operation] = Queue(loop)

    def submit(self, operation: Operation) -> None:
        """Queue an operation; its future is resolved in the event loop."""
        self._queue.put(operation)

    def stop(self) -> None:
        """Let the thread end when everything that is queued now is committed."""
        self._queue.end()

    def run(self) -> None:
        """Commit group after group until told to stop."""
        going = True
        self._look()
        while going:
            group, going = self._queue.take(IDLE_SECONDS)
            if group:
                self._commit(group)
            elif going:
                self._look()
        self.was_last = self._store.leave()
        self._store.close()

    def _look(self) -> None:
        """Do what is due though nobody asks."""
        try:
            due = self._store.due()
        except psycopg.Error:
            due = True  # The transaction knows what to do about it.
        if due:
            self._commit([])

    def _commit(self, group: list[Operation]) -> None:
        news: Committed | None = None
        try:
            news = self._store.transact(
                lambda book: _run(group, book), [operation.about for operation in group]
            ).news
            self.commits += 1
            self.problem = None
        except Exception as error:
            # The edge of the thread: a fault in one group must not end the ledger.
            if len(group) > 1 and not isinstance(error, LedgerUnavailable):
                self._one_by_one(group)
                return
            if not isinstance(error, LedgerUnavailable):
                logger.exception("an operation failed")
                error = LedgerUnavailable(f"the ledger could not do it: {error!r}")
            self.problem = str(error)
            for operation in group:
                operation.error = error
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._answer, group, news)

    def _one_by_one(self, group: list[Operation]) -> None:
        """Let an operation that the database can't take fail alone."""
        for operation in group:
            self._commit([operation])

    def _answer(self, group: list[Operation], news: Committed | None) -> None:
        if news is not None:
            self._publish(news)
        for operation in group:
            if operation.future.done():
                continue
            if operation.error is not None:
                operation.future.set_exception(operation.error)
            else:
                operation.future.set_result(operation.result)


def _run(group: list[Operation], book: Book) -> None:
    """Run a group; it may be run again."""
    for operation in group:
        operation.result = operation.error = None
        try:
            operation.result = operation.run(book)
        except (LedgerError, ValueError) as error:
            operation.error = error
