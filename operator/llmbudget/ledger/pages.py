"""The pages of a book: what is known in memory, how months end, which thresholds are crossed.

Periods. The current one is the clock's, in the time zone in force, and never goes back. When it
turns, each account's period is closed with its cap at that time; what of its overage exceeds that
cap is posted to the new period as its debit. A late settle that makes it more posts the
difference, always to the current period: in one that is over, a debit would hold nobody back.

Thresholds are evaluated for the current period only: a late settle of a closed month may make it
cross one, but nobody can act on that any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Protocol
from uuid import NAMESPACE_URL, uuid5

from llmbudget.api.money import Nano
from llmbudget.decide.periods import Period, period_at, period_named
from llmbudget.decide.thresholds import awaiting_approval, crossed, downgrade_level
from llmbudget.ledger.interface import ActionRow, Balance, UnknownAccount, UnknownHold
from llmbudget.ledger.records import (
    LIMIT,
    Account,
    Changes,
    EntryRow,
    Figures,
    Header,
    KeyRow,
    OpenHold,
)

Clock = Callable[[], datetime]


class Shelf(Protocol):
    """Where a book finds the rows that it doesn't keep in memory."""

    def figures(self, account: str, period: str) -> Figures | None:
        """Find an account's sums in a period."""

    def entry(self, entry_id: str) -> EntryRow | None:
        """Find an entry by its id."""

    def key(self, consumer: str, key: str) -> KeyRow | None:
        """Find a used idempotency key."""

    def action(self, action_id: str) -> ActionRow | None:
        """Find a crossed threshold."""

    def cursor(self, name: str) -> int:
        """Read how far a consumer of the rows has come."""

    def actions(self, period: str | None) -> Sequence[ActionRow]:
        """List a period's crossed thresholds and all that are not acknowledged."""

    def accounts_in(self, period: str) -> Sequence[str]:
        """List the accounts that have sums in a period."""

    def older(self, period: str, limit: int) -> Sequence[int]:
        """List the `seq` of entries of earlier periods, but never that of the last one."""


class Pages:
    """Accounts, their sums and the open holds, as the running transaction sees them."""

    def __init__(
        self,
        shelf: Shelf,
        clock: Clock,
        header: Header,
        accounts: Iterable[Account],
        holds: Iterable[OpenHold],
        last_seq: int,
    ) -> None:
        self.header = header
        self.accounts = {account.name: account for account in accounts}
        self.holds = {hold.id: hold for hold in holds}
        self.changes = Changes()
        self._shelf = shelf
        self._clock = clock
        self._last_seq = last_seq
        self._figures: dict[tuple[str, str], Figures] = {}
        self._actions: dict[str, ActionRow] = {}
        self._news: set[str] = set()

    def catch_up(
        self, header: Header, last_seq: int, figures: Iterable[tuple[str, str, Figures]]
    ) -> None:
        """Take over what other owners committed in the current period. Sums of other periods are
        read anew when they are asked for."""
        self.header, self._last_seq = header, last_seq
        self._figures = {
            key: kept for key, kept in self._figures.items() if key[1] == header.period
        }
        news = {(account, period): found for account, period, found in figures}
        self._figures.update(news)
        self._news = {account for account, _ in news}
        self.changes = Changes()

    def shelve(self, shelf: Shelf) -> None:
        """Find rows elsewhere from now on."""
        self._shelf = shelf

    @property
    def last_seq(self) -> int:
        """The highest `seq` of an entry so far."""
        return self._last_seq

    # Periods

    @property
    def period(self) -> str:
        """Name of the current period.

        Raises:
            UnknownAccount: nothing was configured yet.
        """
        if self.header.period is None:
            raise UnknownAccount("the ledger is not configured yet")
        return self.header.period

    def turn(self) -> None:
        """Go on to the clock's period if it is a later one."""
        current = self.header.period
        if current is None:
            return
        now = self._clock()
        # Only where the zone in force has left the month does the next zone have a say, and then
        # the later month of the two: otherwise a zone to the west would turn back.
        reached = period_at(now, self.header.time_zone).name
        if reached <= current:
            return
        reached = max(reached, period_at(now, self.header.next_time_zone).name)
        self.header.period = reached
        self.header.time_zone = self.header.next_time_zone
        self.changes.header = True
        self.changes.keys_before = current
        for name in self._shelf.accounts_in(current):
            self._close(name, current)
        self._evaluate(self.accounts)

    def _close(self, name: str, period: str) -> None:
        figures = self._changing(name, period)
        account = self.accounts.get(name)
        figures.closed = True
        figures.closing_cap = None if account is None else account.cap
        self._carry(name, figures)

    def _carry(self, name: str, figures: Figures) -> None:
        due = figures.due
        if due:
            figures.carried += due
            self._changing(name, self.period).debit += due

    # Charges

    def _charge(
        self, path: Sequence[str], period: str, *, spent: int, overage: int, held: int
    ) -> None:
        for name in path:
            figures = self._changing(name, period)
            figures.spent += spent
            figures.overage += overage
            figures.held += held
            if figures.closed:
                self._carry(name, figures)
        self._evaluate(path)

    def _check_room(self, path: Sequence[str], period: str, cost: int) -> None:
        for name in path:
            self._check_cost(cost, self._read(name, period))

    @staticmethod
    def _check_cost(cost: int, figures: Figures) -> None:
        if figures.total + cost >= LIMIT:
            raise ValueError("cost is beyond what the ledger counts")

    # Thresholds

    def _evaluate(self, names: Iterable[str]) -> None:
        """Write the actions of thresholds that are crossed in the current period."""
        for name in names:
            account = self.accounts.get(name)
            if account is None or not account.active or not account.thresholds:
                continue
            spent = self._now(name).total
            for threshold in crossed(account.thresholds, spent, account.cap):
                key = f"{name} {self.period} {threshold.percentage}"
                action_id = uuid5(NAMESPACE_URL, key).hex
                if self._action(action_id) is None:
                    self._record(
                        ActionRow(
                            id=action_id,
                            account=name,
                            period=self.period,
                            percentage=threshold.percentage,
                            action=threshold.action,
                            spent=Nano(spent),
                            cap=Nano(account.cap or 0),
                            fired_at=self._clock().astimezone(UTC),
                            acknowledged=False,
                        )
                    )

    def _record(self, row: ActionRow) -> None:
        self._actions[row.id] = row
        self.changes.actions[row.id] = row

    # Reading

    def balance(self, name: str) -> Balance:
        """Tell where a configured account stands in the current period."""
        account, figures = self.accounts[name], self._now(name)
        reached = crossed(account.thresholds, figures.total, account.cap)
        return Balance(
            account=name,
            period=self._current(),
            cap=None if account.cap is None else Nano(account.cap),
            spent=Nano(figures.total),
            held=Nano(figures.held),
            level=downgrade_level(reached, account.steps),
            awaiting_approval=awaiting_approval(reached, account.approved_period, self.period),
        )

    def actions(self) -> Sequence[ActionRow]:
        """List the period's actions and all unacknowledged ones, as last committed."""
        return self._shelf.actions(self.header.period)

    def active_accounts(self) -> set[str]:
        """List the configured accounts."""
        return {account.name for account in self.accounts.values() if account.active}

    def changed_accounts(self) -> set[str]:
        """List the configured accounts whose sums this transaction changed, or others before
        it."""
        names = {name for name, period in self.changes.figures if period == self.period}
        return (names | self._news) & self.active_accounts()

    def _path(self, name: str) -> list[Account]:
        return list(self._climb(name))

    def _climb(self, name: str | None) -> Iterator[Account]:
        while name is not None:
            account = self.accounts.get(name)
            if account is None or not account.active:
                raise UnknownAccount(f"{name}: this account is not configured")
            yield account
            name = account.parent

    def _standing(self, path: Sequence[str], period: str) -> Iterator[tuple[Account, Figures]]:
        for name in path:
            yield self.accounts[name], self._read(name, period)

    def _current(self) -> Period:
        return period_named(self.period, self.header.time_zone)

    def _now(self, name: str) -> Figures:
        return self._read(name, self.period)

    def _read(self, name: str, period: str) -> Figures:
        key = (name, period)
        figures = self._figures.get(key)
        if figures is None:
            figures = self._figures[key] = self._shelf.figures(name, period) or Figures()
        return figures

    def _changing(self, name: str, period: str) -> Figures:
        figures = self._read(name, period)
        self.changes.figures[(name, period)] = figures
        return figures

    def _entry(self, entry_id: str) -> EntryRow | None:
        changes = self.changes
        return (
            changes.entries.get(entry_id)
            or changes.corrected.get(entry_id)
            or self._shelf.entry(entry_id)
        )

    def _resolved(self, hold_id: str) -> EntryRow:
        row = self._entry(hold_id)
        if row is None:
            raise UnknownHold(f"{hold_id}: there is no such hold")
        return row

    def _action(self, action_id: str) -> ActionRow | None:
        row = self._actions.get(action_id) or self._shelf.action(action_id)
        if row is not None:
            self._actions[action_id] = row
        return row
