"""The embedded ledger: one SQLite file, owned by one process.

Holds are durable before they are granted. A settle is committed but waits for no fsync of its
own: what a power failure takes of it, the next start charges at the hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar

import apsw

from llmbudget.contract.config import AccountConfig
from llmbudget.contract.events import LedgerEvent
from llmbudget.ledger.feed import Feed
from llmbudget.ledger.interface import (
    ActionRow,
    Balance,
    Entry,
    Hold,
    HoldRequest,
    LedgerUnavailable,
    Settlement,
    Status,
    UnknownAccount,
)
from llmbudget.ledger.sqlite.book import Book
from llmbudget.ledger.sqlite.pages import Clock
from llmbudget.ledger.sqlite.rows import Rows
from llmbudget.ledger.sqlite.schema import connect_reading
from llmbudget.ledger.sqlite.store import Ownership, Store
from llmbudget.ledger.sqlite.writer import Committed, Operation, Writer

Result = TypeVar("Result")


def utc_now() -> datetime:
    """Read this machine's clock."""
    return datetime.now(UTC)


class SqliteLedger:
    """A `Ledger` in a file. Make it with `open`; it belongs to the event loop that opened it."""

    def __init__(
        self, path: Path, store: Store, ownership: Ownership, start: _Start, *, clock: Clock
    ) -> None:
        self._path = path
        self._ownership = ownership
        self._clock = clock
        self._closed = False
        self._feed = Feed(start.epoch)
        self._feed.replace(start.balances, generation=start.generation)
        self._feed.act(start.actions)
        self._reader: apsw.Connection | None = None
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._writer = Writer(store, path, asyncio.get_running_loop(), self._publish)
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
        return cls(path, store, ownership, start, clock=clock)

    @property
    def commits(self) -> int:
        """Transactions since it was opened."""
        return self._writer.commits

    async def configure(
        self, accounts: Sequence[AccountConfig], *, time_zone: str, generation: int
    ) -> None:
        """See `Ledger.configure`.

        Raises:
            ValueError: the time zone is unknown, a cap is out of range or the tree is none.
        """
        await self._do(
            lambda book: book.configure(accounts, time_zone=time_zone, generation=generation)
        )

    async def hold(self, request: HoldRequest) -> Hold:
        """See `Ledger.hold`. When the caller is cancelled meanwhile, the hold is given back.

        Raises:
            ValueError: the amount is negative or beyond what the ledger counts.
        """
        asked = self._submit(lambda book: book.hold(request))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(self._give_back)
            raise

    def _give_back(self, asked: asyncio.Future[Hold]) -> None:
        if asked.cancelled() or asked.exception() is not None or self._closed:
            return
        hold_id = asked.result().id
        given = self._submit(lambda book: book.release(hold_id))
        # Nobody is there to be told; a hold that stays is charged by the next owner.
        given.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def settle(self, hold_id: str, settlement: Settlement) -> Entry:
        """See `Ledger.settle`.

        Raises:
            ValueError: a figure is negative or beyond what the ledger counts.
        """
        return await self._do(lambda book: book.settle(hold_id, settlement), durable=False)

    async def release(self, hold_id: str, status: Status = Status.ERROR) -> Entry:
        """See `Ledger.release`."""
        return await self._do(lambda book: book.release(hold_id, status), durable=False)

    async def acknowledge(self, action_id: str) -> None:
        """See `Ledger.acknowledge`."""
        await self._do(lambda book: book.acknowledge(action_id))

    async def advance(self, name: str, seq: int) -> None:
        """See `Ledger.advance`."""
        await self._do(lambda book: book.advance(name, seq), durable=False)

    async def forget(self, before: str, limit: int) -> int:
        """See `Ledger.forget`."""
        return await self._do(lambda book: book.forget(before, limit), durable=False)

    async def tick(self) -> None:
        """Go on to the clock's period now; an idle ledger does it within a second by itself."""
        await self._do(lambda book: None, durable=False)

    async def entry(self, entry_id: str) -> Entry | None:
        """See `Ledger.entry`."""

        def find(rows: Rows) -> Entry | None:
            row = rows.entry(entry_id)
            return None if row is None else row.entry

        return await self._read(find)

    async def entries(self, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """See `Ledger.entries`."""
        return await self._read(lambda rows: rows.entries(after, limit))

    async def cursor(self, name: str) -> int:
        """See `Ledger.cursor`."""
        return await self._read(lambda rows: rows.cursor(name))

    def balance(self, account: str) -> Balance:
        """See `Ledger.balance`."""
        try:
            return self._feed.balances[account]
        except KeyError:
            raise UnknownAccount(f"{account}: this account is not configured") from None

    def balances(self) -> Mapping[str, Balance]:
        """See `Ledger.balances`."""
        return self._feed.balances

    def subscribe(self) -> AsyncIterator[LedgerEvent]:
        """See `Ledger.subscribe`."""
        return self._feed.follow()

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

    def _publish(self, committed: Committed) -> None:
        if committed.reconfigured:
            self._feed.replace(committed.balances, generation=committed.generation)
        else:
            self._feed.update(committed.balances)
        if committed.actions:
            self._feed.act(committed.actions)

    def _submit(
        self, run: Callable[[Book], Result], *, durable: bool = True
    ) -> asyncio.Future[Result]:
        if self._closed:
            raise LedgerUnavailable(f"{self._path}: closed")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._writer.submit(Operation(run, durable, future))
        return future

    async def _do(self, run: Callable[[Book], Result], *, durable: bool = True) -> Result:
        return await self._submit(run, durable=durable)

    async def _read(self, read: Callable[[Rows], Result]) -> Result:
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
        self.balances: dict[str, Balance] = {}
        if book.header.period is not None:
            self.balances = {name: book.balance(name) for name in book.changed_accounts()}
        self.actions = actions


def _begin(store: Store) -> _Start:
    store.take_over()
    with store.transaction() as book:
        book.changes.header = True
        return _Start(book, book.actions())
