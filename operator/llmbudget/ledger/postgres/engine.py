"""The shared ledger: a PostgreSQL database, owned by any number of gateways at once.

Holds and settles are durable when they are answered. The time is the database's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import psycopg

from llmbudget.ledger.book import Book
from llmbudget.ledger.feed import Feed
from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.operations import NOTHING, Operations, Reading, Subject
from llmbudget.ledger.postgres.connection import Connection, Database, passing
from llmbudget.ledger.postgres.owners import LEASE_SECONDS
from llmbudget.ledger.postgres.rows import Rows
from llmbudget.ledger.postgres.store import Clock, Store
from llmbudget.ledger.postgres.writer import Operation, Writer
from llmbudget.ledger.regions.authority import AuthorityBook
from llmbudget.ledger.regions.lease import REGION_SECONDS

Result = TypeVar("Result")


class PostgresLedger(Operations):
    """A `Ledger` in a database; it belongs to the event loop that made it.

    It is one at once, whether or not the database can be used: until it can, every operation
    raises LedgerUnavailable, and `problem` says why. `name` says whose ledger it is: gateways of
    the same budget share it, others can't. The file holds the connection string. An owner that
    stands still for `lease_seconds` is taken for dead, a region that is silent for `region_seconds`
    is given up.
    """

    kind: ClassVar[type[AuthorityBook]] = AuthorityBook
    """Of its book."""

    def __init__(
        self,
        file: Path,
        name: str,
        clock: Clock = lambda now: now,
        lease_seconds: float = LEASE_SECONDS,
        region_seconds: float = REGION_SECONDS,
    ) -> None:
        super().__init__(Feed())
        self._database = Database(file)
        self._reader: Connection | None = None
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._store = Store(self._database, name, clock, lease_seconds, self.kind, region_seconds)
        self._writer = Writer(self._store, asyncio.get_running_loop(), self._feed.take)
        self._writer.start()

    @classmethod
    async def open(
        cls,
        file: Path,
        name: str,
        clock: Clock = lambda now: now,
        lease_seconds: float = LEASE_SECONDS,
        region_seconds: float = REGION_SECONDS,
    ) -> Self:
        """Make one whose database can be used.

        Raises:
            LedgerUnavailable: the database can't be used, is a standby, belongs to another budget,
                or a newer version made its tables.
        """
        ledger = cls(file, name, clock, lease_seconds, region_seconds)
        try:
            await ledger.tick()
        except BaseException:
            await ledger.close()
            raise
        return ledger

    @property
    def problem(self) -> str | None:
        """See `Ledger.problem`."""
        return self._writer.problem

    @property
    def commits(self) -> int:
        """Groups of operations that were committed since it was opened."""
        return self._writer.commits

    async def leads(self) -> bool:
        """See `Ledger.leads`."""
        epochs = await self._look(lambda rows: rows.owners())
        return min(epochs, default=0) == self._store.epoch

    async def close(self) -> None:
        """See `Ledger.close`."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._reading.shutdown)
        if self._reader is not None:
            self._reader.close()
        self._writer.stop()
        await asyncio.to_thread(self._writer.join)
        # The last group's answers were queued by the writer before it ended.
        await asyncio.sleep(0)

    def _submit(
        self, run: Callable[[Book], Result], *, durable: bool = True, about: Subject = NOTHING
    ) -> asyncio.Future[Result]:
        if self._closed:
            raise LedgerUnavailable(f"PostgreSQL of {self._database.file}: closed")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._writer.submit(Operation(run, about, future))
        return future

    async def _read(self, read: Callable[[Reading], Result]) -> Result:
        return await self._look(read)

    async def _look(self, read: Callable[[Rows], Result]) -> Result:
        if self._closed:
            raise LedgerUnavailable(f"PostgreSQL of {self._database.file}: closed")

        def run() -> Result:
            for last in (False, True):
                try:
                    if self._reader is None:
                        self._reader = self._database.connect()
                    return read(Rows(self._reader))
                except psycopg.Error as error:
                    again = passing(error, self._reader)
                    if self._reader is not None:
                        self._reader.close()
                        self._reader = None
                    if last or not again:
                        raise self._database.unavailable(error) from error
            raise AssertionError("the last try returns or raises")

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)
