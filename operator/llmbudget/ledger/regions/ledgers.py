"""Both sides in PostgreSQL: the authority's database as a region speaks to it, and its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, cast

from llmbudget.contract.config import AccountConfig
from llmbudget.ledger.book import Book
from llmbudget.ledger.operations import Subject
from llmbudget.ledger.postgres.engine import PostgresLedger
from llmbudget.ledger.records import Holder
from llmbudget.ledger.regions.authority import Answer, AuthorityBook, Granted, Told
from llmbudget.ledger.regions.local import Position, RegionalBook, position_of

Key = tuple[str, str]
"""Account and period."""


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


class RegionLedger(PostgresLedger):
    """A region's own ledger."""

    kind: ClassVar[type[AuthorityBook]] = RegionalBook

    async def follow(
        self, configs: Sequence[AccountConfig], *, time_zone: str, generation: int, period: str
    ) -> None:
        """See `RegionalBook.follow`."""
        await self._submit(
            lambda book: _regional(book).follow(
                configs, time_zone=time_zone, generation=generation, period=period
            )
        )

    async def fund(self, granted: Mapping[Key, int], period: str) -> None:
        """Take over what was granted in total, and the authority's month."""

        def run(book: Book) -> None:
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

    async def last_seq(self) -> int:
        """Read the number of the newest row."""
        return await self._look(lambda rows: rows.last_seq())

    async def incarnation(self) -> str:
        """Read the id of the tables."""
        return await self._look(lambda rows: rows.incarnation())

    async def alone(self) -> bool:
        """Tell whether there is no other owner."""
        return set(await self._look(lambda rows: rows.owners())) <= {self._store.epoch}


def _regional(book: Book) -> RegionalBook:
    return cast(RegionalBook, book)
