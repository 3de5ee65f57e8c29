"""The pages of a book: what is known in memory, read from the shelf and marked as changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from llmbudget.decide.lending import Cohort
from llmbudget.decide.periods import Period, period_named
from llmbudget.ledger.interface import ActionRow, Envelope, UnknownAccount, UnknownHold
from llmbudget.ledger.records import (
    Account,
    Changes,
    EntryRow,
    Figures,
    Header,
    KeyRow,
    OpenHold,
    Transfer,
)

Clock = Callable[[], datetime]

NEVER: Final = datetime.max.replace(tzinfo=UTC)


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

    def envelope(self, envelope_id: str) -> Envelope | None:
        """Find an envelope, open or closed."""

    def transfer(self, transfer_id: str) -> Transfer | None:
        """Find a transfer."""

    def cursor(self, name: str) -> int:
        """Read how far a consumer of the rows has come."""

    def actions(self, period: str | None) -> Sequence[ActionRow]:
        """List a period's crossed thresholds and all that are not acknowledged."""

    def accounts_in(self, period: str) -> Sequence[str]:
        """List the accounts that have sums in a period."""

    def older(self, period: str, limit: int) -> Sequence[int]:
        """List the `seq` of entries of earlier periods, but never that of the last one."""


class Pages:
    """Accounts, their sums, the open holds and envelopes, as the running transaction sees them."""

    def __init__(
        self,
        shelf: Shelf,
        clock: Clock,
        header: Header,
        accounts: Iterable[Account],
        holds: Iterable[OpenHold],
        envelopes: Iterable[Envelope],
        last_seq: int,
    ) -> None:
        self.header = header
        self.accounts = {account.name: account for account in accounts}
        self.holds = {hold.id: hold for hold in holds}
        self.envelopes = {envelope.id: envelope for envelope in envelopes}
        """The open ones."""
        self.changes = Changes()
        self._shelf = shelf
        self._clock = clock
        self._last_seq = last_seq
        self._figures: dict[tuple[str, str], Figures] = {}
        self._actions: dict[str, ActionRow] = {}
        self._news: set[str] = set()
        self.untold: set[str] = set()
        """Accounts that other owners changed, and nobody was told."""
        self._cohorts: dict[str, list[Account]] = {}
        """Who borrows of whom, by parent."""
        self._loaned: dict[str, list[Account]] = {}
        """Who has a loan of former terms, by the parent below which it was made."""
        self._standing: dict[str, Cohort] = {}
        """Where they stand, but for those in `_moved`: a hold must not look at all siblings."""
        self._moved: set[str] = set()
        self._turned = clock()
        """When time last moved something."""
        self.alarm = NEVER
        """When the next envelope or top-up expires."""
        self._set_alarm()

    def begin(self) -> None:
        """Begin a transaction on what is known."""
        self.changes = Changes()
        self._news = set()

    def catch_up(
        self,
        header: Header,
        last_seq: int,
        figures: Iterable[tuple[str, str, Figures]],
        envelopes: Iterable[Envelope] = (),
    ) -> None:
        """Begin a transaction, and take over what other owners committed in the current period.
        Sums of other periods are read anew when they are asked for."""
        self.begin()
        self.header, self._last_seq = header, last_seq
        self._figures = {
            key: kept for key, kept in self._figures.items() if key[1] == header.period
        }
        news = {(account, period): found for account, period, found in figures}
        self._figures.update(news)
        others = {account for account, _ in news}
        self.untold |= others
        self._moved |= others
        for envelope in envelopes:
            self._know(envelope)

    def tell_others(self) -> None:
        """Count what other owners changed as news of this transaction."""
        self._news |= self.untold
        self.untold = set()

    def shelve(self, shelf: Shelf) -> None:
        """Find rows elsewhere from now on."""
        self._shelf = shelf

    @property
    def last_seq(self) -> int:
        """The highest `seq` of an entry so far."""
        return self._last_seq

    @property
    def period(self) -> str:
        """Name of the current period.

        Raises:
            UnknownAccount: nothing was configured yet.
        """
        if self.header.period is None:
            raise UnknownAccount("the ledger is not configured yet")
        return self.header.period

    def active_accounts(self) -> set[str]:
        """List the configured accounts."""
        return {account.name for account in self.accounts.values() if account.active}

    def actions(self) -> Sequence[ActionRow]:
        """List the period's actions and all unacknowledged ones, as last committed."""
        return self._shelf.actions(self.header.period)

    # Accounts and their sums

    def _put(self, account: Account) -> None:
        self.accounts[account.name] = account
        self.changes.accounts[account.name] = account
        self._forget_cohorts()

    def _forget_cohorts(self) -> None:
        self._cohorts.clear()
        self._loaned.clear()
        self._standing.clear()

    def _path(self, name: str) -> list[Account]:
        return list(self._climb(name))

    def _climb(self, name: str | None) -> Iterator[Account]:
        while name is not None:
            account = self.accounts.get(name)
            if account is None or not account.active:
                raise UnknownAccount(f"{name}: this account is not configured")
            yield account
            name = account.parent

    def _cohort(self, parent: str) -> Sequence[Account]:
        """List those that borrow of and lend to each other below a parent: also those that do so
        no longer, or are gone, until the period of their last loan ends."""
        if not self._cohorts:
            for each in self.accounts.values():
                found = each.cohort(self.period)
                if found is not None:
                    self._cohorts.setdefault(found, []).append(each)
        return self._cohorts[parent]

    def _with_loans(self, parent: str) -> Sequence[Account]:
        """List those whose loans of former terms were made below a parent: also those whose cap is
        removed, which have no cohort."""
        if not self._loaned:
            for each in self.accounts.values():
                loan = each.loan_in(self.period)
                if loan is not None:
                    self._loaned.setdefault(loan.parent, []).append(each)
        return self._loaned[parent]

    def _current(self) -> Period:
        return period_named(self.period, self.header.time_zone)

    def _now(self, name: str) -> Figures:
        period = self.header.period or self.period
        return self._figures.get((name, period)) or self._read(name, period)

    def _read(self, name: str, period: str) -> Figures:
        key = (name, period)
        figures = self._figures.get(key)
        if figures is None:
            figures = self._figures[key] = self._shelf.figures(name, period) or Figures()
        return figures

    def _changing(self, name: str, period: str) -> Figures:
        figures = self._read(name, period)
        self.changes.figures[(name, period)] = figures
        self._moved.add(name)
        return figures

    # Envelopes

    def _know(self, envelope: Envelope) -> None:
        if envelope.closed:
            self.envelopes.pop(envelope.id, None)
        else:
            self.envelopes[envelope.id] = envelope
            self.alarm = min(self.alarm, envelope.expires)

    def _keep(self, envelope: Envelope) -> None:
        self._know(envelope)
        self.changes.envelopes[envelope.id] = envelope

    def _envelope(self, envelope_id: str) -> Envelope | None:
        return (
            self.envelopes.get(envelope_id)
            or self.changes.envelopes.get(envelope_id)
            or self._shelf.envelope(envelope_id)
        )

    def _set_alarm(self) -> None:
        """Find when the next thing expires."""
        expiring = [each.expires for each in self.envelopes.values()]
        if self.header.period is not None:
            expiring += [
                top_up.expires
                for account in self.accounts.values()
                for top_up in account.top_ups
                if top_up.period == self.header.period and self._clock() < top_up.expires
            ]
        self.alarm = min(expiring, default=NEVER)

    # Rows

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

    def _key(self, consumer: str, key: str) -> KeyRow | None:
        used = self.changes.keys.get((consumer, key))
        if used is None and (consumer, key) not in self.changes.freed:
            used = self._shelf.key(consumer, key)
        return used

    def _action(self, action_id: str) -> ActionRow | None:
        row = self._actions.get(action_id) or self._shelf.action(action_id)
        if row is not None:
            self._actions[action_id] = row
        return row

    def _record(self, row: ActionRow) -> None:
        self._actions[row.id] = row
        self.changes.actions[row.id] = row

    def _transfer(self, transfer_id: str) -> Transfer | None:
        return self.changes.transfers.get(transfer_id) or self._shelf.transfer(transfer_id)

    def _post(self, transfer: Transfer) -> None:
        self.changes.transfers[transfer.id] = transfer
