"""One transaction of the database around what a book does.

Every transaction first locks the ledger's own row. So all of one ledger's transactions, whichever
gateway they come from, run one after the other, and no other lock can be waited for in a circle. A
book that is kept in memory catches up, under that lock, with what others committed meanwhile.

A transaction takes two round trips: lock and read, then write and commit. When the answer to the
second is lost, nobody knows whether it was committed. So each owner counts its commits in a row
of its own: the next transaction reads the count back, under the lock that the lost one must have
left, and either takes the results as they stand or runs the operations again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

import psycopg

from llmbudget.decide.periods import months_before
from llmbudget.ledger.book import Book
from llmbudget.ledger.feed import Committed
from llmbudget.ledger.interface import ActionRow, Envelope, LedgerUnavailable
from llmbudget.ledger.operations import Subject
from llmbudget.ledger.postgres.asked import Asked
from llmbudget.ledger.postgres.connection import Connection, Database, passing
from llmbudget.ledger.postgres.migrations import migrate
from llmbudget.ledger.postgres.owners import LEASE_SECONDS, LOOK_SECONDS, Watch
from llmbudget.ledger.postgres.rows import (
    NEWS,
    Rows,
    figures_of,
)
from llmbudget.ledger.postgres.standing import COUNT, LOCK, WRITE, Standing, identity
from llmbudget.ledger.postgres.writing import write
from llmbudget.ledger.records import Changes
from llmbudget.ledger.regions.authority import AuthorityBook
from llmbudget.ledger.regions.lease import REGION_SECONDS

PATIENCE_SECONDS: Final = 5.0
"""How long a transaction is tried again before its callers are told."""
_PAUSE_SECONDS: Final = (0.02, 0.5)
_FEW: Final = 64
"""So many accounts that others changed are told with the next commit."""
_OTHERS_SECONDS: Final = 0.25
"""So late may it be told what others did to more accounts than that."""

Clock = Callable[[datetime], datetime]
"""Tells the time, given the database's."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """A transaction that was committed."""

    result: Result
    news: Committed | None
    """What changed, by this transaction or others."""


class Store:
    """The ledger's database, one transaction at a time. Not for several threads at once."""

    def __init__(
        self,
        database: Database,
        name: str,
        clock: Clock = lambda now: now,
        lease_seconds: float = LEASE_SECONDS,
        book: type[AuthorityBook] = AuthorityBook,
        region_seconds: float = REGION_SECONDS,
    ) -> None:
        self.epoch = 0
        """Of this process as an owner; 0: none yet."""
        self._database = database
        self._name = name
        self._clock = clock
        self._now = datetime.now(UTC)
        self._watch = Watch[int](lease_seconds)
        self._regions = Watch[str](region_seconds)
        self._kind = book
        self._connection: Connection | None = None
        self._book: AuthorityBook | None = None
        self._seen = 0
        self._commits = 0
        self._looked_at = 0.0
        self._doubt: tuple[int, int, Any] | None = None
        self._told_at = 0.0
        self._lost: set[str] = set()
        self._told: dict[str, bool] = {}
        self._partitions: set[str] = set()
        self._incarnation: str | None = None
        """Of the tables in which this process is an owner."""
        self._down = False
        self._migrated = False

    def transact(
        self, run: Callable[[Book], Result], about: Sequence[Subject] = ()
    ) -> Done[Result]:
        """Run operations on the book and commit what they changed; all of it or nothing. They may
        run several times until it is known what became of them.

        Raises:
            LedgerUnavailable: the database can't be used now; the next transaction tries again.
            psycopg.DataError, psycopg.IntegrityError: it can't take one of the values.
        """
        patience = 0.0 if self._down else PATIENCE_SECONDS
        deadline = time.monotonic() + patience
        pause, longest = _PAUSE_SECONDS
        self._doubt = None
        asked: set[str] = set()
        while True:
            try:
                done = self._attempt(run, about)
            except psycopg.Error as error:
                again = passing(error, self._connection)
                asked |= self._abandon()
                if isinstance(error, psycopg.errors.UndefinedTable):
                    self._migrated = False  # They were dropped: the next one makes them anew.
                if not again and isinstance(error, psycopg.DataError | psycopg.IntegrityError):
                    raise
                if not again or time.monotonic() >= deadline:
                    self._down = again
                    self._lost |= asked
                    raise self._database.unavailable(error) from error
                time.sleep(pause)
                pause = min(pause * 2, longest)
            except BaseException:
                self._abandon()
                raise
            else:
                self._down = False
                return done

    def due(self) -> bool:
        """Tell whether a transaction is due though nobody asks for one: others committed, the
        month has turned, or this owner must show that it lives.

        Raises:
            psycopg.Error: the database can't be used.
        """
        book, connection = self._book, self._connection
        if book is None or connection is None or book.untold or self._look_due():
            return True
        row = connection.execute("SELECT version, clock_timestamp() FROM ledger").fetchone()
        if row is None or row[0] != self._seen:
            return True
        return book.due(self._clock(row[1]))

    def leave(self) -> bool:
        """Give up, before `close`: what is still held is charged, since nobody will settle it.
        Tells whether this was the last owner: of several that leave at once, just one is."""
        with contextlib.suppress(LedgerUnavailable, psycopg.Error):
            if not self.epoch:
                return False
            self.transact(lambda book: book.sweep(list(book.holds.values())))
            if self._connection is not None:
                with self._connection.transaction():
                    self._connection.execute(LOCK)
                    self._connection.execute("DELETE FROM owners WHERE epoch = %s", (self.epoch,))
                    return not Rows(self._connection).owners()
        return False

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    # One attempt

    def _prepare(self) -> None:
        """Bring the tables to this program's schema, once. What is wrong at the start is told at
        once: it may be the connection string."""
        if self._migrated:
            return
        try:
            migrate(self._database)
        except psycopg.Error as error:
            raise self._database.unavailable(error) from error
        self._migrated = True

    def _attempt(self, run: Callable[[Book], Result], about: Sequence[Subject]) -> Done[Result]:
        self._prepare()
        connection = self._connected()
        found, book, fresh = self._begin(connection, about)
        if self._doubt is not None:
            epoch, commits, result = self._doubt
            self._doubt = None
            if (epoch, commits) == (found.header.epoch, found.commits):
                connection.execute("ROLLBACK")
                self._book = None  # The next transaction tells what this one would have.
                return Done(result, None)
        self._book = book
        book.turn()
        looking = self._look_due()
        if looking:
            self._look_after(connection, book)
        result = run(book)
        if book.changes == Changes() and not looking:
            connection.execute("ROLLBACK")
            self._seen = found.version
        else:
            self._doubt = (found.header.epoch, (found.commits or 0) + 1, result)
            self._commit(connection, found, book)
            if looking:
                self._looked_at = time.monotonic()
        # Only now: other gateways waited for the lock until the commit.
        done = Done(result, self._news(book, fresh))
        self._doubt = None
        self._tidy(book)
        return done

    def _news(self, book: Book, fresh: Sequence[ActionRow] | None) -> Committed | None:
        """Say what changed. What many accounts of others did is told less often than it is read:
        each gateway would tell all that all do."""
        now = time.monotonic()
        if len(book.untold) <= _FEW or now - self._told_at >= _OTHERS_SECONDS:
            book.tell_others()
            self._told_at = now
        return Committed.by(book, fresh)

    def _begin(
        self, connection: Connection, about: Sequence[Subject]
    ) -> tuple[Standing, AuthorityBook, Sequence[ActionRow] | None]:
        """Lock the ledger, and bring the book to where it stands. Where it was read anew, tell
        the actions that followers don't know yet."""
        book = self._book
        with connection.pipeline():
            connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            locked = connection.execute(LOCK)
            period = None if book is None else book.header.period
            news = connection.execute(
                NEWS, {"epoch": self.epoch, "period": period, "seen": self._seen}
            )
            if book is not None:
                asked = Asked.ask(connection, about, period, book.holds)
        rows = news.fetchall()
        found = Standing.of(locked.fetchone(), self._database, self._name)
        found.header.epoch = self.epoch
        now, commits = rows[0][:2]
        self._now = self._clock(now)
        # In other tables this owner's number may be another's.
        if found.header.incarnation == self._incarnation:
            found = replace(found, commits=commits)
        if found.commits is None:
            found = self._enlist(connection, found)
        same = book is not None and (
            found.identity == identity(book.header)
            and found.rare_version <= self._seen <= found.version
        )
        fresh: Sequence[ActionRow] | None = None
        if book is None or not same:
            book, fresh = self._load(connection, found)
            asked = Asked.ask(connection, about, book.header.period, book.holds)
        else:
            envelopes: Sequence[Envelope] = ()
            if found.envelopes_version > self._seen:
                envelopes = Rows(connection).envelopes_since(self._seen)
            changed = figures_of(row[2:] for row in rows if row[2] is not None)
            book.catch_up(found.header, found.last_seq, changed, envelopes)
        asked.fetch(connection, book, about)
        return found, book, fresh

    def _enlist(self, connection: Connection, found: Standing) -> Standing:
        """Become an owner, for the first time or after others took this one for dead."""
        epoch = found.epoch + 1
        connection.execute("INSERT INTO owners VALUES (%s, 0)", (epoch,))
        self._looked_at = float("-inf")
        header = found.header
        header.epoch = epoch
        return replace(found, epoch=epoch, header=header, commits=0)

    def _load(
        self, connection: Connection, found: Standing
    ) -> tuple[AuthorityBook, Sequence[ActionRow]]:
        """Read everything anew; tell the actions that followers don't know yet."""
        rows = Rows(connection)
        header = found.header
        book = self._kind(
            rows,
            lambda: self._now,
            header,
            rows.accounts(),
            rows.holds_of([header.epoch]),
            rows.open_envelopes(),
            found.last_seq,
        )
        book.catch_up(header, found.last_seq, rows.figures_in(header.period))
        # Whoever asked for these holds was told no and has sent nothing.
        for hold_id in self._lost & book.holds.keys():
            book.release(hold_id)
        actions = rows.actions(header.period)
        return book, [row for row in actions if self._told.get(row.id) != row.acknowledged]

    def _look_after(self, connection: Connection, book: AuthorityBook) -> None:
        """Charge the holds of owners that are gone, and the slices of regions that are silent."""
        rows = Rows(connection)
        dead = self._watch.dead(rows.owners(), book.header.epoch, book.header.incarnation)
        if dead:
            connection.execute("DELETE FROM owners WHERE epoch = ANY(%s)", (dead,))
        orphans = rows.ownerless()
        book.holds.update((hold.id, hold) for hold in orphans)
        book.sweep(orphans)
        holders = {each.id: each.beats for each in rows.holders() if not each.lost}
        book.write_off(self._regions.dead(holders))

    def _commit(self, connection: Connection, found: Standing, book: Book) -> None:
        version = found.version + 1
        changes, header = book.changes, book.header
        rare = changes.header or changes.accounts or changes.actions
        with connection.pipeline():
            self._make_partitions(connection, header.period, changes)
            ledger = (
                self._name,
                max(found.epoch, header.epoch),
                version,
                version if rare else found.rare_version,
                version if changes.envelopes else found.envelopes_version,
                book.last_seq,
                header.generation,
                header.period,
                header.time_zone,
                header.next_time_zone,
            )
            mine = ((found.commits or 0) + 1, header.epoch)
            write(connection, changes, version, [(COUNT, mine), (WRITE, ledger)])
            connection.execute("COMMIT")
        self.epoch, self._seen = header.epoch, version
        self._incarnation = header.incarnation
        self._lost.clear()

    def _make_partitions(
        self, connection: Connection, period: str | None, changes: Changes
    ) -> None:
        """Have the partitions of the months that are written to: the current one's, the next one's
        before anybody needs it, and those of calls that another ledger counted."""
        months = {row.entry.period for row in changes.entries.values()}
        if period is not None:
            months |= {period, months_before(period, -1)}
        for month in sorted(months - self._partitions):
            connection.execute("SELECT make_entries_partition(%s)", (month,))
        self._partitions |= months

    def _tidy(self, book: Book) -> None:
        """Put away what belongs to other owners, before the book is used again."""
        epoch = book.header.epoch
        foreign = [hold.id for hold in book.holds.values() if hold.epoch != epoch]
        for hold_id in foreign:
            del book.holds[hold_id]
        self._told.update((row.id, row.acknowledged) for row in book.changes.actions.values())
        # What is committed is in no doubt any more, whatever the next transaction comes to.
        book.begin()

    def _look_due(self) -> bool:
        return time.monotonic() - self._looked_at >= LOOK_SECONDS

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._database.connect()
            self._watch.interrupted()
            self._regions.interrupted()
        return self._connection

    def _abandon(self) -> set[str]:
        """Forget what may differ from the database, the connection too; tell the holds that may
        have been opened all the same."""
        book, self._book = self._book, None
        self._partitions = set()
        self.close()
        return set() if book is None else set(book.changes.opened)
