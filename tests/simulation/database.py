"""A database that several gateways share, as they see it over a network that fails.

The rows are an SQLite file's and the rules are the real book's. Simulated is what PostgreSQL's
engine has to live with: latency, lost requests, lost answers, outages, owners that vanish.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from tests.simulation.clockwork import Clockwork, Process

from llmbudget.ledger.book import Book
from llmbudget.ledger.feed import Committed, Feed
from llmbudget.ledger.interface import (
    BudgetExceeded,
    EnvelopeExceeded,
    LedgerError,
    LedgerUnavailable,
)
from llmbudget.ledger.operations import NOTHING, Operations, Reading, Subject
from llmbudget.ledger.records import Account
from llmbudget.ledger.sqlite.store import Store

Result = TypeVar("Result")

START: Final = datetime(2026, 11, 29, 12, tzinfo=UTC)
LEASE_SECONDS: Final = 15.0
"""How long an owner may be still before the others take it for dead."""
LOOK_SECONDS: Final = 3.0
PATIENCE_SECONDS: Final = 5.0
"""How long a gateway tries before its callers are told."""
_PAUSE_SECONDS: Final = 0.2


class Broken(AssertionError):
    """A promise does not hold."""


class ConnectionLost(Exception):
    """The database did not answer."""


@dataclass(slots=True)
class Operation:
    """One thing to do to the book, and who waits for its result."""

    run: Callable[[Book], object]
    about: Subject
    future: asyncio.Future[Any]
    result: object = None
    error: Exception | None = None


class Database:
    """The server: one transaction at a time, with a clock of its own."""

    def __init__(self, path: Path, loop: Clockwork) -> None:
        self._loop = loop
        self._store = Store(path, self.time)
        self._seen: dict[int, float] = {}
        self.shift = timedelta()
        """What someone did to its clock."""
        self.down = False
        self.broken: asyncio.Future[None] = loop.create_future()
        """Gets the first broken promise as its exception."""

    def time(self) -> datetime:
        """The server's clock."""
        return START + timedelta(seconds=self._loop.now) + self.shift

    def restart(self) -> None:
        """Forget all that is not in the file."""
        self._store._abandon(None)

    def enlist(self) -> int:
        """Take a new owner in."""
        with self._store.transaction(durable=False) as book:
            book.header.epoch += 1
            book.changes.header = True
            epoch = book.header.epoch
        self._seen[epoch] = self._loop.now
        return epoch

    def knows(self, epoch: int) -> bool:
        """Tell whether an owner is still one."""
        return epoch in self._seen

    def transact(self, epoch: int, operations: list[Operation]) -> Committed:
        """Run a group of one owner's operations, check what they did, and tell where all accounts
        stand."""
        self._seen[epoch] = self._loop.now
        with self._store.transaction(durable=False) as book:
            newest = book.header.epoch
            self._sweep(book)
            book.header.epoch = epoch
            try:
                for operation in operations:
                    opened = set(book.changes.opened)
                    run_operation(operation, book)
                    # Now, since the next operation may lower the cap.
                    _check_cap(book, book.changes.opened.keys() - opened)
            except Broken as broken:
                if not self.broken.done():
                    self.broken.set_exception(broken)
                raise
            finally:
                book.header.epoch = newest
            return Committed(
                balances=book.balances(sorted(book.active_accounts())),
                actions=list(book.changes.actions.values()),
                epoch=epoch,
                generation=book.header.generation,
                reconfigured=True,
                envelopes=len(book.envelopes),
            )

    def _sweep(self, book: Book) -> None:
        dead = {e for e, at in self._seen.items() if self._loop.now - at > LEASE_SECONDS}
        for epoch in dead:
            del self._seen[epoch]
        book.sweep([hold for hold in book.holds.values() if hold.epoch not in self._seen])

    def read(self, run: Callable[[Book], Result]) -> Result:
        """Look at the book."""
        with self._store.transaction(durable=False) as book:
            return run(book)


def run_operation(operation: Operation, book: Book) -> None:
    """Run an operation, and see that no refusal is a wrong one."""
    operation.result = operation.error = None
    try:
        operation.result = operation.run(book)
    except BudgetExceeded as error:
        _check_refusal(book, error)
        operation.error = error
    except LedgerError as error:
        operation.error = error


def _check_refusal(book: Book, error: BudgetExceeded) -> None:
    """Nobody is told that all is spent while what is asked for is there."""
    if error.only_held:
        return
    if isinstance(error, EnvelopeExceeded):
        envelope = book.envelopes[error.account]
        room = envelope.cap - envelope.spent
    else:
        account, figures = book.accounts[error.account], book._now(error.account)
        if _lent(book, account):
            return
        room = (book._own(account, figures) or 0) - figures.total - figures.lent
    if error.asked <= room and room > 0:
        raise Broken(f"402 though {room} is left beside {error.asked}") from error


def _lent(book: Book, account: Account) -> bool:
    """Tell whether an account's siblings may have spent its money."""
    parent = account.cohort(book.period)
    if parent is None:
        return False
    members = [(each, book._now(each.name)) for each in book._cohort(parent)]
    return any(sums.total + sums.lent > (book._own(each, sums) or 0) for each, sums in members)


def _check_cap(book: Book, granted: set[str]) -> None:
    """I1: whatever was granted fits, on every account of its path."""
    for hold_id in sorted(granted):
        hold = book.changes.opened[hold_id]
        for name in hold.path:
            cap, figures = book.accounts[name].cap, book._read(name, hold.period)
            if cap is not None and figures.used > cap:
                raise Broken(f"I1: {name} has {figures.total} + {figures.held} of {cap}")


class Server(Protocol):
    """A database as one of its owners sees it."""

    down: bool

    def transact(self, operations: list[Operation]) -> Committed | None:
        """Run a group of the owner's operations; tell what they changed."""

    def interrupted(self) -> None:
        """The owner's connection was lost."""


class Courier:
    """Brings groups of one owner's operations to the database, and what became of them back."""

    def __init__(
        self,
        server: Server,
        loop: Clockwork,
        chance: random.Random,
        publish: Callable[[Committed], None],
    ) -> None:
        self._server = server
        self._loop = loop
        self._chance = chance
        self._publish = publish
        self._queue: asyncio.Queue[Operation | None] = asyncio.Queue()
        self._lost: set[str] = set()
        self.cut = False
        """Whether nothing gets from here to the database."""
        self.slowest = 0.02
        """The longest way there or back, in seconds."""
        self.was_last = False
        """Whether it left no other owner behind when it ended."""
        self.problem: str | None = "the database was not asked yet"
        """Why it could not be reached last time; None: it was."""

    def submit(self, operation: Operation) -> None:
        """Queue an operation; its future is resolved when it is known what became of it."""
        self._queue.put_nowait(operation)

    def stop(self) -> None:
        """Let `run` return when everything that is queued now is committed."""
        self._queue.put_nowait(None)

    async def run(self) -> None:
        """Commit group after group until told to stop."""
        going = True
        while going:
            group: list[Operation | None] = []
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    group.append(await self._queue.get())
            while not self._queue.empty():
                group.append(self._queue.get_nowait())
            going = None not in group
            await self._commit([each for each in group if each is not None])

    async def _commit(self, group: list[Operation]) -> None:
        """Bring a group to the database until it is known what became of it."""
        deadline = self._loop.now + PATIENCE_SECONDS
        news: Committed | None = None
        committed = False
        while True:
            try:
                if not committed:
                    await self.travel()
                    self._give_back_lost()
                    news = self._server.transact(group)
                    committed = True
                # From here on the count of its commits says that the group was one of them.
                await self.travel()
                break
            except ConnectionLost:
                self._server.interrupted()
                if self._loop.now >= deadline:
                    self._tell_unavailable(group)
                    return
                await asyncio.sleep(_PAUSE_SECONDS)
        self.problem = None
        if news is not None:
            self._publish(news)
        for operation in group:
            if operation.future.done():
                continue
            if operation.error is not None:
                operation.future.set_exception(operation.error)
            else:
                operation.future.set_result(operation.result)

    def _give_back_lost(self) -> None:
        """Whoever asked for these holds was told no and has sent nothing."""
        lost, self._lost = self._lost, set()

        def release(book: Book) -> None:
            for hold_id in sorted(lost & book.holds.keys()):
                book.release(hold_id)

        if lost:
            future: asyncio.Future[None] = self._loop.create_future()
            self._server.transact([Operation(release, NOTHING, future)])

    def _tell_unavailable(self, group: list[Operation]) -> None:
        self._lost |= {o.about.id for o in group if o.about.new and o.about.id is not None}
        self.problem = "the database is away"
        for operation in group:
            if not operation.future.done():
                operation.future.set_exception(LedgerUnavailable("the database is away"))

    async def travel(self) -> None:
        """Go to the database, or back.

        Raises:
            ConnectionLost: it was in vain.
        """
        await asyncio.sleep(self._chance.uniform(self.slowest / 40, self.slowest))
        if self.cut or self._server.down or self._chance.random() < 0.02:
            await asyncio.sleep(self._chance.uniform(0.0, 1.0))
            raise ConnectionLost


class Owner:
    """One owner of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.epoch = database.enlist()

    @property
    def down(self) -> bool:
        """Whether nobody reaches the database."""
        return self._database.down

    def transact(self, operations: list[Operation]) -> Committed:
        """Run a group of operations."""
        if not self._database.knows(self.epoch):
            self.epoch = self._database.enlist()
        return self._database.transact(self.epoch, operations)

    def interrupted(self) -> None:
        """The database itself sees who is still."""


class SimulatedLedger(Operations):
    """A gateway's ledger in the database."""

    def __init__(
        self, database: Database, process: Process, loop: Clockwork, chance: random.Random
    ) -> None:
        owner = Owner(database)
        super().__init__(Feed(owner.epoch))
        self._loop = loop
        self.courier = Courier(owner, loop, chance, self._feed.take)
        loop.start(process, self.courier.run())

    def _submit(
        self, run: Callable[[Book], Result], *, durable: bool = True, about: Subject = NOTHING
    ) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = self._loop.create_future()
        self.courier.submit(Operation(run, about, future))
        return future

    async def _read(self, read: Callable[[Reading], Result]) -> Result:
        raise NotImplementedError("no call reads rows")

    @property
    def problem(self) -> str | None:
        """It finds out by trying."""
        return None

    async def leads(self) -> bool:
        """Nobody asks here."""
        return True

    async def close(self) -> None:
        """Nothing to let go of."""
