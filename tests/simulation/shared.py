"""PostgreSQL as the ledgers of regions use it: its rows in memory, over a network that fails.

Real are the books of both sides, the watch over owners and regions, and all that speaks to them
(`ledger.regions`). Simulated is the engine below (`postgres.store`, `postgres.writer`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar, cast

from tests.simulation.clockwork import Clockwork, Process
from tests.simulation.database import (
    LEASE_SECONDS,
    LOOK_SECONDS,
    PATIENCE_SECONDS,
    START,
    Broken,
    ConnectionLost,
    Courier,
    Operation,
    run_operation,
)
from tests.simulation.tables import Tables

from llmbudget.ledger.book import Book
from llmbudget.ledger.feed import Committed, Feed
from llmbudget.ledger.interface import LedgerError, LedgerUnavailable
from llmbudget.ledger.operations import NOTHING, Operations, Reading
from llmbudget.ledger.postgres.engine import PostgresLedger
from llmbudget.ledger.postgres.owners import Watch
from llmbudget.ledger.postgres.rows import Rows
from llmbudget.ledger.records import Account, Holder, TransferKind
from llmbudget.ledger.regions.authority import AuthorityBook
from llmbudget.ledger.regions.ledgers import AuthorityLedger, RegionLedger
from llmbudget.ledger.regions.messages import Answer, Told

Result = TypeVar("Result")

REGION_SECONDS: Final = 30.0
"""How long a region may be silent; in earnest it is 15 minutes."""


class SharedDatabase:
    """One server: one transaction at a time, with a clock of its own."""

    def __init__(
        self, name: str, kind: type[AuthorityBook], loop: Clockwork, chance: random.Random
    ) -> None:
        self.name = self.file = name
        self.kind = kind
        """Of the book that is kept in it."""
        self.shift = timedelta()
        """What someone did to its clock."""
        self.down = False
        self.broken: asyncio.Future[None] = loop.create_future()
        """Gets the first broken promise as its exception."""
        self.loans = 0
        """How often something was granted of siblings' money."""
        self.opened: dict[str, tuple[str, float]] = {}
        """In which tables a hold was taken, and when."""
        self._loop = loop
        self._chance = chance
        self.tables = self._new_tables()

    def time(self) -> datetime:
        """The server's clock."""
        return START + timedelta(seconds=self._loop.now) + self.shift

    def drop(self) -> None:
        """Lose all; whoever comes next finds tables made anew."""
        self.tables = self._new_tables()

    def _new_tables(self) -> Tables:
        return Tables.made_anew(f"{self.name}-{self._chance.getrandbits(32):08x}")

    def transact(self, owner: Owner, operations: list[Operation]) -> Committed:
        """Run a group of one owner's operations, check what they did, and tell where all accounts
        stand."""
        tables = self.tables
        book = self.book(owner.epoch)
        try:
            book.turn()
            self._check_carried(book)
            for operation in operations:
                self._run(operation, book)
        except Exception as error:
            if not self.broken.done():
                self.broken.set_exception(error)
            raise
        tables.commits[owner.epoch] += 1
        tables.write(book.header, book.last_seq, book.changes)
        place = tables.header.incarnation, self._loop.now
        self.opened |= dict.fromkeys(book.changes.opened, place)
        return Committed(
            balances=book.balances(sorted(book.active_accounts())),
            actions=list(book.changes.actions.values()),
            epoch=owner.epoch,
            generation=book.header.generation,
            reconfigured=True,
            envelopes=len(book.envelopes),
        )

    def book(self, epoch: int) -> AuthorityBook:
        """Read the book."""
        tables = self.tables
        return self.kind(
            tables,
            self.time,
            replace(tables.header, epoch=epoch),
            tables.account_rows.values(),
            tables.holds.values(),
            [each for each in tables.envelope_rows.values() if each.closed is None],
            tables.last,
        )

    def _run(self, operation: Operation, book: AuthorityBook) -> None:
        opened, given = set(book.changes.opened), dict(book.changes.slices)
        run_operation(operation, book)
        # Now, since the next operation may lower the cap.
        for hold_id in book.changes.opened.keys() - opened:
            hold = book.changes.opened[hold_id]
            self._check_cap(book, hold.path, hold.period)
        for id, envelope in book.changes.envelopes.items():
            if id not in self.tables.envelope_rows:
                self._check_cap(book, envelope.path, envelope.period)
        for key, each in book.changes.slices.items():
            before = given.get(key) or self.tables.slice_rows.get(key)
            if each.granted > (before.granted if before else 0):
                self._check_cap(book, each.path, each.period)

    def _check_cap(self, book: AuthorityBook, path: tuple[str, ...], period: str) -> None:
        """I1: whatever was granted fits, on every account of its path."""
        for name in path:
            account, figures = book.accounts[name], book._read(name, period)
            own = book._own(account, figures)
            if own is None or figures.used <= own:
                continue
            if figures.used > own + account.limits(period)[0]:
                raise Broken(f"I1: {name} has {figures} of {own}")
            self._check_loans(book, account)
            self.loans += 1

    def _check_loans(self, book: AuthorityBook, account: Account) -> None:
        """I1: what siblings have of each other was idle."""
        needed = idle = 0
        for each in book._cohort(account.cohort(book.period) or ""):
            figures, (limit, lends) = book._now(each.name), each.limits(book.period)
            own = book._own(each, figures) or 0
            needed += min(limit, max(0, figures.used - own))
            kept = 0 if lends is None else max(0, own - lends)
            idle += max(0, own - max(figures.used, kept))
        if needed > idle:
            raise Broken(f"I1: {account.name} and its siblings borrow {needed} of {idle}")

    def _check_carried(self, book: AuthorityBook) -> None:
        """I1: what is carried on was not used."""
        for transfer in book.changes.transfers.values():
            if transfer.kind is not TransferKind.ROLLOVER:
                continue
            account, before = book.accounts[transfer.account], transfer.source or ""
            figures = book._read(transfer.account, before)
            if transfer.amount + figures.used > (account.cap or 0) + figures.rolled:
                raise Broken(f"I1: {account.name} carries {transfer.amount} on, of {figures}")


class Owner:
    """One gateway as an owner of a database, and what it sees of the others."""

    def __init__(self, database: SharedDatabase, loop: Clockwork) -> None:
        self._database = database
        self._loop = loop
        self._watch = Watch[int](LEASE_SECONDS, loop.time)
        self._regions = Watch[str](REGION_SECONDS, loop.time)
        self._looked_at = float("-inf")
        self._incarnation = ""
        self.epoch = 0

    @property
    def down(self) -> bool:
        """Whether nobody reaches the database."""
        return self._database.down

    @property
    def tables(self) -> Tables:
        """What the database has."""
        return self._database.tables

    def transact(self, operations: list[Operation]) -> Committed | None:
        """Run a group of operations, after those that are due."""
        self._enlist()
        if self._loop.now - self._looked_at >= LOOK_SECONDS:
            operations = [self._operation(self._look_after), *operations]
            self._looked_at = self._loop.now
        news = self._database.transact(self, operations)
        return news if self.tables.header.period is not None else None

    def interrupted(self) -> None:
        """The connection was lost."""
        self._watch.interrupted()
        self._regions.interrupted()

    def leave(self) -> bool:
        """Go in order; tell whether this was the last one."""
        self._enlist()
        mine = [hold for hold in self.tables.holds.values() if hold.epoch == self.epoch]
        self._database.transact(self, [self._operation(lambda book: book.sweep(mine))])
        del self.tables.commits[self.epoch]
        return not self.tables.commits

    def _enlist(self) -> None:
        """Become an owner, for the first time or after others took this one for dead."""
        tables = self.tables
        if tables.header.incarnation != self._incarnation or self.epoch not in tables.commits:
            self._incarnation, self.epoch = tables.header.incarnation, tables.enlist()
            self._looked_at = float("-inf")

    def _operation(self, run: Callable[[Book], object]) -> Operation:
        return Operation(run, NOTHING, self._loop.create_future())

    def _look_after(self, book: Book) -> None:
        """Charge the holds of owners that are gone, and the slices of regions that are silent, as
        `postgres.store` does."""
        tables = self.tables
        for dead in self._watch.dead(tables.owners(), self.epoch, tables.header.incarnation):
            del tables.commits[dead]
        book.sweep([hold for hold in book.holds.values() if hold.epoch not in tables.commits])
        holders = {each.id: each.beats for each in tables.holders() if not each.lost}
        cast(AuthorityBook, book).write_off(self._regions.dead(holders))


class _Simulated(PostgresLedger):
    """A ledger in such a database, in place of `PostgresLedger`."""

    def __init__(
        self,
        database: SharedDatabase,
        process: Process,
        loop: Clockwork,
        chance: random.Random,
        slowest: float,
    ) -> None:
        Operations.__init__(self, Feed())
        self._database = cast(Any, database)
        self._owner = Owner(database, loop)
        self.courier = Courier(self._owner, loop, chance, self._feed.take)
        self.courier.slowest = slowest
        self._writer = cast(Any, self.courier)
        self._process = process
        self._loop = loop
        self._chance = chance
        self._running = loop.start(process, self.courier.run())

    async def leads(self) -> bool:
        return min(await self._look(lambda rows: rows.owners()), default=0) == self._owner.epoch

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.courier.stop()
        await self._running
        if self.courier.problem is None:
            try:
                await self.courier.travel()
                self.courier.was_last = self._owner.leave()
            except ConnectionLost:
                return

    async def _read(self, read: Callable[[Reading], Result]) -> Result:
        return await self._look(cast(Any, read))

    async def _look(self, read: Callable[[Rows], Result]) -> Result:
        deadline = self._loop.now + PATIENCE_SECONDS
        while True:
            try:
                # PostgreSQL shows each statement what is committed; here all see the same.
                found = read(cast(Rows, self._owner.tables))
                await self.courier.travel()
            except ConnectionLost:
                if self._loop.now >= deadline:
                    raise LedgerUnavailable("the database is away") from None
            else:
                return found


class SimulatedAuthority(AuthorityLedger, _Simulated):
    """The budget's own ledger, as one gateway uses it."""

    async def hear(self, holder: Holder, told: Told) -> Answer:
        if self._chance.random() < 0.05:
            self._loop.start(self._process, self._hear_again(holder, told))
        return await super().hear(holder, told)

    async def _hear_again(self, holder: Holder, told: Told) -> None:
        """A message comes twice, and late: others of the region have told more meanwhile."""
        await asyncio.sleep(self._chance.uniform(0.0, PATIENCE_SECONDS))
        with contextlib.suppress(LedgerError):
            await super().hear(holder, told)


class SimulatedRegion(RegionLedger, _Simulated):
    """A region's own ledger, as one gateway uses it."""
