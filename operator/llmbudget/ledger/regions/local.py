"""A region's own book: each account may spend what slices it was given, and nothing else.

The accounts stand alone here: what is above them in the tree was asked when the slice was granted.
The month is the authority's: it turns here when the authority says so, so that no two clocks can
disagree about it, and what is spent until then is of the month that the slice is of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from llmbudget.api.budget import OnExceeded
from llmbudget.contract.config import AccountConfig
from llmbudget.ledger.interface import Entry, Settlement
from llmbudget.ledger.months import _Closing
from llmbudget.ledger.records import Account, Figures, Holder
from llmbudget.ledger.regions.authority import AuthorityBook
from llmbudget.ledger.regions.messages import TablesReplaced


@dataclass(frozen=True, slots=True)
class Position:
    """Where an account of a region stands in a period."""

    account: str
    period: str
    granted: int
    returned: int
    spent: int
    """Within holds."""
    held: int

    @property
    def unused(self) -> int:
        """What may still be spent, or given back."""
        return self.granted - self.returned - self.spent - self.held


class RegionalBook(AuthorityBook):
    """What can be done to a region's own ledger, within one transaction."""

    # Configuration

    def follow(
        self,
        configs: Sequence[AccountConfig],
        *,
        time_zone: str,
        generation: int,
        period: str,
    ) -> None:
        """Take over the accounts, and the authority's month.

        Raises:
            ValueError: as `Book.configure`.
        """
        first = self.header.period is None
        blocked = blocking(configs)
        alone = [
            AccountConfig(
                name=each.name,
                cap_nano=0,
                providers=(),
                on_exceeded=OnExceeded.BLOCK if each.name in blocked else OnExceeded.DOWNGRADE,
            )
            for each in configs
        ]
        self.configure(alone, time_zone=time_zone, generation=generation)
        if first:
            self.header.period = period
        self.reach(period)

    # Months

    def due(self, now: datetime) -> bool:
        """No clock of its own turns its month."""
        return False

    def turn(self) -> None:
        """See `due`."""

    def reach(self, period: str) -> None:
        """Go on to the authority's month, if it is a later one."""
        if period > self.period:
            self._turn_to(period)

    def _own(self, account: Account, figures: Figures) -> int | None:
        # Overage is the authority's to count: here it takes nothing from what was given.
        return figures.granted - figures.returned + figures.overage

    def _closing(self, name: str) -> _Closing:
        # What a month leaves is the authority's to carry on.
        return replace(super()._closing(name), cap=None, unused=0)

    # Slices

    def check(self, holder: Holder) -> None:
        """See that these are still the tables of a holder.

        Raises:
            TablesReplaced.
        """
        if self.header.incarnation != holder.id:
            raise TablesReplaced(holder.region)

    def fund(self, account: str, period: str, granted: int) -> None:
        """Take over what was granted in total."""
        self.reach(period)
        if granted > self._read(account, period).granted:
            self._changing(account, period).granted = granted

    def give_back(
        self, positions: Iterable[tuple[str, str]], amount: Callable[[Position], int]
    ) -> None:
        """Let go of what is not needed: of each account and period as much as a function says."""
        for account, period in positions:
            found = self.position(account, period)
            back = min(amount(found), found.unused)
            if back > 0:
                self._changing(account, period).returned += back

    def position(self, account: str, period: str) -> Position:
        """Tell where an account stands in a period."""
        return position_of(account, period, self._read(account, period))

    # Rows

    def _settle_late(self, hold_id: str, settlement: Settlement) -> Entry:
        before = self._resolved(hold_id).entry
        entry = super()._settle_late(hold_id, settlement)
        if entry == before:
            return entry
        # A new number, so that the row is shipped once more.
        self._last_seq += 1
        entry = replace(entry, seq=self._last_seq)
        new = entry.id in self.changes.entries
        rows = self.changes.entries if new else self.changes.corrected
        rows[entry.id] = replace(rows[entry.id], entry=entry)
        return entry


def blocking(configs: Sequence[AccountConfig]) -> set[str]:
    """List the accounts whose free calls stop too when a cap on their path is reached; every parent
    is before its children."""
    found: set[str] = set()
    for each in configs:
        capped = each.cap_nano is not None and each.on_exceeded is OnExceeded.BLOCK
        if capped or each.parent in found:
            found.add(each.name)
    return found


def position_of(account: str, period: str, figures: Figures) -> Position:
    """Make a position of an account's sums."""
    return Position(
        account=account,
        period=period,
        granted=figures.granted,
        returned=figures.returned,
        spent=figures.spent,
        held=figures.held,
    )
