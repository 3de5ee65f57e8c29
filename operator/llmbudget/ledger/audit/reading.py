"""What is read of an audited ledger: sums by path and month."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from llmbudget.ledger.audit.sources import Row, Source
from llmbudget.ledger.book import FORGOTTEN
from llmbudget.ledger.records import Figures

Key = tuple[str, str]
"""Account and period."""


_MOST_NAMED: Final = 20
"""Ids that a finding names."""


@dataclass(frozen=True, slots=True)
class EnvelopeRow:
    """An envelope, open or closed."""

    id: str
    account: str
    path: tuple[str, ...]
    period: str
    cap: int
    spent: int
    held: int
    closed: object

    @property
    def reserved(self) -> int:
        """What is set aside on its path."""
        return self.held if self.closed is not None else max(self.held, self.cap - self.spent)


@dataclass(frozen=True, slots=True)
class SliceRow:
    """What a region was given of an account in a month, whichever its tables were."""

    account: str
    period: str
    path: tuple[str, ...]
    granted: int
    shipped: int
    returned: int
    unknown: int

    @property
    def outstanding(self) -> int:
        """What is held on its path."""
        return self.granted - self.shipped - self.returned - self.unknown


class Reading:
    """What the checks compare, read once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        ((self.period,),) = self.all("SELECT period FROM ledger")
        forgotten = self.all(f"SELECT seq FROM cursors WHERE name = '{FORGOTTEN}'")
        self.forgotten = _month(forgotten[0][0]) if forgotten else ""
        """Rows of earlier months may be missing."""
        self.figures: dict[Key, Figures] = {
            (account, period): Figures(spent, overage, debit, held, carried, bool(closed), *others)
            for account, period, spent, overage, debit, held, carried, closed, *others in self.all(
                "SELECT account, period, spent, overage, debit, held, carried, closed, "
                "closing_cap, lent, rolled FROM account_periods ORDER BY period, account"
            )
        }
        self.accounts = {row[0] for row in self.all("SELECT name FROM accounts")}
        self.cohorts: dict[str, str] = dict(
            self.all(
                "SELECT name, parent FROM accounts WHERE parent IS NOT NULL "
                "AND (borrows IS NOT NULL OR loan IS NOT NULL)"
            )
        )
        """Parents of those that lend and borrow now: of former months the rows don't tell."""
        self.envelopes = [
            EnvelopeRow(id, account, source.path(path), *others)
            for id, account, path, *others in self.all(
                "SELECT id, account, path, period, cap, spent, held, closed FROM envelopes"
            )
        ]
        self.slices = [
            SliceRow(account, period, source.path(path), *others)
            for account, period, path, *others in self.of_regions(
                "SELECT account, period, path, granted, shipped, returned, unknown FROM slices"
            )
        ]
        self.charged: dict[tuple[tuple[str, ...], str], tuple[int, int]] = {}
        """Charged within and beyond holds, by path and period."""
        self.rows = 0
        for path, period, rows, within, beyond in self.all(
            "SELECT path, period, count(*), sum(CASE WHEN cost > held THEN held ELSE cost END), "
            "sum(CASE WHEN cost > held THEN cost - held ELSE 0 END) FROM entries "
            "GROUP BY path, period"
        ):
            self.charged[source.path(path), period] = int(within), int(beyond)
            self.rows += rows
        self.open: dict[tuple[tuple[str, ...], str], int] = {}
        """Held by calls that are paid from no envelope, by path and period."""
        self.holds = 0
        for path, period, holds, amount in self.all(
            "SELECT path, period, count(*), sum(CASE WHEN envelope IS NULL THEN amount ELSE 0 END) "
            "FROM holds GROUP BY path, period"
        ):
            self.open[source.path(path), period] = int(amount)
            self.holds += holds

    def all(self, statement: str) -> list[Row]:
        """Read rows."""
        return list(self.source.query(statement))

    def of_regions(self, statement: str) -> list[Row]:
        """Read rows of a table that only a shared ledger has."""
        return self.all(statement) if self.source.shared else []

    def ids(self, statement: str) -> str:
        """Name what a statement finds; empty: nothing."""
        found = [str(row[0]) for row in self.all(f"{statement} LIMIT {_MOST_NAMED + 1}")]
        more = " and more" if len(found) > _MOST_NAMED else ""
        return ", ".join(found[:_MOST_NAMED]) + more

    def by_account(self, sums: Iterable[tuple[tuple[str, ...], str, int]]) -> Counter[Key]:
        """Add sums by path up on each account of the path."""
        total: Counter[Key] = Counter()
        for path, period, amount in sums:
            for account in path:
                total[account, period] += amount
        return total


def _month(number: int) -> str:
    return f"{number // 100:04d}-{number % 100:02d}"
