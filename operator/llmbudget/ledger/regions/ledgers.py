"""Both sides in PostgreSQL: the authority's database as a region speaks to it, and its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, TypeVar, cast

from llmbudget.contract.config import AccountConfig
from llmbudget.ledger.book import Book
from llmbudget.ledger.operations import NOTHING, Subject
from llmbudget.ledger.postgres.engine import PostgresLedger
from llmbudget.ledger.postgres.rows import Rows
from llmbudget.ledger.records import Holder
from llmbudget.ledger.regions.authority import AuthorityBook
from llmbudget.ledger.regions.evidence import Stand
from llmbudget.ledger.regions.local import Position, RegionalBook, position_of
from llmbudget.ledger.regions.messages import Answer, Granted, TablesReplaced, Told

Key = tuple[str, str]
"""Account and period."""
Result = TypeVar("Result")


class AuthorityLedger(PostgresLedger):
    """The budget's own ledger, as a region's gateway uses it."""

    async def grant(self, holder: Holder, account: str, asked: int, least: int) -> Granted:
        """See `AuthorityBook.grant`."""
        return await self._submit(
            lambda book: cast(AuthorityBook, book).grant(holder, account, asked, least),
            about=Subject(holder=holder.id),
        )

    async def hear(self, holder: Holder, told: Told) -> Answer:
        """See `AuthorityBook.hear`."""
        return await self._submit(
            lambda book: cast(AuthorityBook, book).hear(holder, told),
            about=Subject(holder=holder.id),
        )

    async def booked(self, holder: Holder) -> int:
        """Read the number of a holder's last row that is booked."""
        found = await self._look(lambda rows: rows.holders())
        return next((each.shipped_seq for each in found if each.id == holder.id), 0)

    async def distrust(self, holder: Holder) -> None:
        """See `AuthorityBook.distrust`."""
        await self._submit(lambda book: cast(AuthorityBook, book).distrust(holder))


class RegionLedger(PostgresLedger):
    """A region's own ledger."""

    kind: ClassVar[type[AuthorityBook]] = RegionalBook
    holder: Holder | None = None
    """Whose tables these must be: all else is refused with TablesReplaced. None: anybody's."""

    async def follow(
        self, configs: Sequence[AccountConfig], *, time_zone: str, generation: int, period: str
    ) -> str:
        """See `RegionalBook.follow`. Tells the id of the tables."""

        def run(book: Book) -> str:
            _regional(book).follow(
                configs, time_zone=time_zone, generation=generation, period=period
            )
            return book.header.incarnation

        return await self._submit(run)

    async def fund(self, holder: Holder, granted: Mapping[Key, int], period: str) -> None:
        """Take over what a holder was granted in total, and the authority's month."""

        def run(book: Book) -> None:
            _regional(book).check(holder)
            _regional(book).reach(period)
            for key, total in granted.items():
                _regional(book).fund(*key, total)

        await self._submit(run)

    async def give_back(
        self, positions: Collection[Key], amount: Callable[[Position], int]
    ) -> None:
        """See `RegionalBook.give_back`."""
        await self._submit(lambda book: _regional(book).give_back(positions, amount))

    async def positions(self, since: str) -> list[Position]:
        """Read where those accounts stand that have slices left, and all in the periods from one
        on."""
        found = await self._look(lambda rows: rows.funded(since))
        return [position_of(*each) for each in found]

    async def stand(self, booked_seq: int, since: str) -> Stand:
        """Read where all stands, and the row of one number; see `positions`."""

        def read(rows: Rows) -> Stand:
            booked = [row.id for row in rows.entries(booked_seq - 1, 1) if row.seq == booked_seq]
            positions = [position_of(*each) for each in rows.funded(since)]
            return Stand(rows.last_seq(), booked[0] if booked else None, positions)

        return await self._look(read)

    @property
    def was_last(self) -> bool:
        """Whether there was no other owner any more when this one was closed."""
        return self._writer.was_last

    def _submit(
        self, run: Callable[[Book], Result], *, durable: bool = True, about: Subject = NOTHING
    ) -> asyncio.Future[Result]:
        holder = self.holder

        def check_and_run(book: Book) -> Result:
            if holder is not None:
                _regional(book).check(holder)
            return run(book)

        return super()._submit(check_and_run, durable=durable, about=about)

    async def _look(self, read: Callable[[Rows], Result]) -> Result:
        holder = self.holder

        def read_and_check(rows: Rows) -> Result:
            found = read(rows)
            # Afterwards: what was read before is then of the same tables.
            if holder is not None and rows.incarnation() != holder.id:
                raise TablesReplaced(holder.region)
            return found

        return await super()._look(read_and_check)


def _regional(book: Book) -> RegionalBook:
    return cast(RegionalBook, book)
