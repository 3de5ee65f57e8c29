"""The embedded ledger: one SQLite file, owned by one process.

Holds are durable before they are granted. A settle is committed but waits for no fsync of its
own: what a power failure takes of it, the next start charges at the hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar

import apsw

from llmbudget.ledger.book import Book
from llmbudget.ledger.feed import Feed
from llmbudget.ledger.interface import ActionRow, Balance, LedgerUnavailable
from llmbudget.ledger.operations import NOTHING, Operations, Reading, Subject
from llmbudget.ledger.pages import Clock
from llmbudget.ledger.sqlite.rows import Rows
from llmbudget.ledger.sqlite.schema import connect_reading
from llmbudget.ledger.sqlite.store import Ownership, Store
from llmbudget.ledger.sqlite.writer import Operation, Writer

Result = TypeVar("Result")


def utc_now() -> datetime:
    """Read this machine's clock."""
    return datetime.now(UTC)


class SqliteLedger(Operations):
    """A `Ledger` in a file. Make it with `open`; it belongs to the event loop that opened it."""

    def __init__(self, path: Path, store: Store, ownership: Ownership, start: _Start) -> None:
        super().__init__(Feed(start.epoch))
        self._path = path
        self._ownership = ownership
        self._feed.replace(start.balances, generation=start.generation)
        self._feed.act(start.actions)
        self._feed.envelopes = start.envelopes
        self._reader: apsw.Connection | None = None
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._writer = Writer(store, path, asyncio.get_running_loop(), self._feed.take)
        self._writer.start()

    @classmethod
    async def open(cls, path: Path, clock: Clock = utc_now) -> Self:
        """Open the file, making it where there is none, and charge the holds that an earlier
        owner left.

        Raises:
            LedgerUnavailable: another process owns the file, a newer version wrote it, or SQLite
                can't use it.
        """
        ownership = Ownership(path)
        try:
            store = Store(path, clock)
            start = await asyncio.to_thread(_begin, store)
        except BaseException:
            ownership.give_up()
            raise
        return cls(path, store, ownership, start)

    @property
    def problem(self) -> str | None:
        """See `Ledger.problem`. The one owner of a file can do no more than try."""
        return None

    @property
    def commits(self) -> int:
        """Transactions since it was opened."""
        return self._writer.commits

    async def leads(self) -> bool:
        """See `Ledger.leads`."""
        return True

    async def close(self) -> None:
        """See `Ledger.close`."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._reading.shutdown)
        if self._reader is not None:
            self._reader.close()
        # Last, since the file's last connection brings the log back into it.
        self._writer.stop()
        await asyncio.to_thread(self._writer.join)
        self._ownership.give_up()
        # The last group's answers were queued by the writer before it ended.
        await asyncio.sleep(0)

    def _submit(
        self, run: Callable[[Book], Result], *, durable: bool = True, about: Subject = NOTHING
    ) -> asyncio.Future[Result]:
        if self._closed:
            raise LedgerUnavailable(f"{self._path}: closed")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._writer.submit(Operation(run, durable, about.id is not None, future))
        return future

    async def _read(self, read: Callable[[Reading], Result]) -> Result:
        if self._closed:
            raise LedgerUnavailable(f"{self._path}: closed")

        def run() -> Result:
            try:
                if self._reader is None:
                    self._reader = connect_reading(self._path)
                return read(Rows(self._reader))
            except apsw.Error as error:
                raise LedgerUnavailable(f"{self._path}: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)


class _Start:
    """Where the ledger stands when it is opened."""

    def __init__(self, book: Book, actions: Sequence[ActionRow]) -> None:
        self.epoch = book.header.epoch
        self.generation = book.header.generation
        self.balances: Mapping[str, Balance] = {}
        if book.header.period is not None:
            self.balances = book.balances(book.active_accounts())
        self.envelopes = len(book.envelopes)
        self.actions = actions


def _begin(store: Store) -> _Start:
    store.take_over()
    with store.transaction() as book:
        return _Start(book, book.actions())
