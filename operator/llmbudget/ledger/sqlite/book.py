"""The book: money moved in memory, within one transaction of the file.

A book is read from the file once and then kept, since one process owns the file. Each operation
checks first and then changes the book and its `changes`, so that a refused operation leaves no
trace; the store writes the changes in the transaction that ran the operations, and throws the
book away when that transaction fails.

Periods. The current one is the clock's, in the time zone in force, and never goes back. When it
turns, each account's period is closed with its cap at that time; what of its overage exceeds that
cap is posted to the new period as its debit. A late settle that makes it more posts the
difference, always to the current period: in one that is over, a debit would hold nobody back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol
from uuid import NAMESPACE_URL, uuid5
from zoneinfo import ZoneInfoNotFoundError

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.decide.periods import Period, period_at, period_named
from llmbudget.decide.thresholds import awaiting_approval, crossed, downgrade_level
from llmbudget.ledger.interface import (
    ActionRow,
    AwaitingApproval,
    Balance,
    BudgetExceeded,
    Entry,
    Hold,
    HoldRequest,
    LedgerError,
    Outcome,
    RepeatedCall,
    Settlement,
    Status,
    UnknownAccount,
    UnknownHold,
)
from llmbudget.ledger.sqlite.records import (
    LIMIT,
    Account,
    Changes,
    EntryRow,
    Figures,
    Header,
    KeyRow,
    OpenHold,
    checked,
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


class Book:
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

    # Configuration

    def configure(
        self, configs: Sequence[AccountConfig], *, time_zone: str, generation: int
    ) -> bool:
        """Take over caps, thresholds and the tree; tell whether it was no older than the ledger's.

        Raises:
            ValueError: the time zone is unknown, a cap is out of range or the tree is none.
        """
        if generation < self.header.generation:
            return False
        try:
            period = period_at(self._clock(), time_zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"unknown time zone {time_zone!r}") from error
        accounts = {
            config.name: Account.configured(config, checked(generation, "generation"))
            for config in configs
        }
        _check_tree(accounts)
        if self.header.period is None:
            self.header.period, self.header.time_zone = period.name, time_zone
        self.header.next_time_zone = time_zone
        self.header.generation = generation
        self.changes.header = True
        for account in self.accounts.values():
            if account.name not in accounts and account.active:
                self._put(replace(account, active=False))
        for account in accounts.values():
            self._put(account)
        self._evaluate(accounts)
        return True

    def _put(self, account: Account) -> None:
        self.accounts[account.name] = account
        self.changes.accounts[account.name] = account

    # Money

    def hold(self, request: HoldRequest) -> Hold:
        """Reserve money on the whole path, or raise what `Ledger.hold` raises.

        Raises:
            ValueError: the amount is negative or beyond what the ledger counts.
        """
        amount = checked(request.amount, "amount")
        path = self._path(request.account)
        again = self.holds.get(request.id)
        if again is not None:
            return self._granted(again)
        self._refuse_repeated(request)
        self._refuse_unapproved(path)
        self._refuse_exceeding(path, amount)
        hold = OpenHold(
            id=request.id,
            path=tuple(account.name for account in path),
            period=self.period,
            amount=amount,
            provider=request.provider,
            model=request.model,
            agent=request.agent,
            task_id=request.task_id,
            epoch=self.header.epoch,
            consumer=request.consumer,
            idempotency_key=request.idempotency_key,
        )
        for name in hold.path:
            self._changing(name, hold.period).held += amount
        self.holds[hold.id] = hold
        self.changes.opened[hold.id] = hold
        key = KeyRow.of(request, hold.period)
        if key is not None:
            self.changes.keys[(key.consumer, key.key)] = key
        return self._granted(hold)

    def _granted(self, hold: OpenHold) -> Hold:
        left = [
            account.cap - figures.total - figures.held
            for account, figures in self._standing(hold.path, hold.period)
            if account.cap is not None
        ]
        remaining = Nano(max(0, min(left))) if left else None
        return Hold(hold.id, hold.path[0], Nano(hold.amount), hold.period, remaining)

    def _refuse_repeated(self, request: HoldRequest) -> None:
        if self._entry(request.id) is not None:
            raise LedgerError(f"entry {request.id} is already resolved")
        if request.idempotency_key is None:
            return
        name = (request.consumer or "", request.idempotency_key)
        used = self.changes.keys.get(name)
        if used is None and name not in self.changes.freed:
            used = self._shelf.key(*name)
        if used is not None:
            first = self._entry(used.entry)
            raise RepeatedCall(
                used.entry,
                None if first is None else first.entry.cost,
                same_request=used.fingerprint == request.fingerprint,
            )

    def _refuse_unapproved(self, path: Sequence[Account]) -> None:
        for account in path:
            reached = crossed(account.thresholds, self._now(account.name).total, account.cap)
            if awaiting_approval(reached, account.approved_period, self.period):
                raise AwaitingApproval(account.name, self._current())

    def _refuse_exceeding(self, path: Sequence[Account], amount: int) -> None:
        """Hold against every cap of the path; where several have no room, one that waiting does
        not help goes first."""
        refusals: list[BudgetExceeded] = []
        for account in path:
            figures = self._now(account.name)
            if figures.total + figures.held + amount >= LIMIT:
                raise ValueError("amount is beyond what the ledger counts")
            if account.cap is None or _fits(account, figures.total, figures.held, amount):
                continue
            refusals.append(
                BudgetExceeded(
                    account.name,
                    asked=Nano(amount),
                    left=Nano(max(0, account.cap - figures.total - figures.held)),
                    cap=Nano(account.cap),
                    period=self._current(),
                    only_held=_fits(account, figures.total, 0, amount),
                )
            )
        if refusals:
            raise min(refusals, key=lambda refusal: refusal.only_held)

    def settle(self, hold_id: str, settlement: Settlement) -> Entry:
        """Charge a hold; see `Ledger.settle`.

        A hold that was charged in full because its outcome was unknown becomes dearer when it
        turns out that it was, never cheaper.

        Raises:
            ValueError: a figure is negative or beyond what the ledger counts.
        """
        if settlement.cost is not None:
            checked(settlement.cost, "cost")
        checked(settlement.tokens_in, "tokens_in")
        checked(settlement.tokens_out, "tokens_out")
        hold = self.holds.get(hold_id)
        if hold is None:
            return self._settle_late(hold_id, settlement)
        unknown = settlement.cost is None
        cost = hold.amount if settlement.cost is None else settlement.cost
        self._check_room(hold.path, hold.period, cost)
        outcome = Outcome.UNKNOWN if unknown else Outcome.METERED
        return self._resolve(hold, cost, outcome, settlement)

    def _settle_late(self, hold_id: str, settlement: Settlement) -> Entry:
        row = self._resolved(hold_id)
        found, cost = row.entry, settlement.cost
        if found.outcome is not Outcome.UNKNOWN or cost is None or cost <= found.cost:
            return found
        self._check_room(row.path, found.period, cost - found.cost)
        self._charge(row.path, found.period, spent=0, overage=cost - found.cost, held=0)
        entry = replace(
            found,
            tokens_in=settlement.tokens_in,
            tokens_out=settlement.tokens_out,
            cost=cost,
            status=settlement.status,
            outcome=Outcome.METERED,
        )
        new = entry.id in self.changes.entries
        rows = self.changes.entries if new else self.changes.corrected
        rows[entry.id] = EntryRow(entry, row.path)
        return entry

    def release(self, hold_id: str, status: Status = Status.ERROR) -> Entry:
        """Give a hold back; see `Ledger.release`. Its idempotency key may be used again."""
        hold = self.holds.get(hold_id)
        if hold is None:
            return self._resolved(hold_id).entry
        if hold.idempotency_key is not None:
            name = (hold.consumer or "", hold.idempotency_key)
            self.changes.keys.pop(name, None)
            self.changes.freed.append(name)
        return self._resolve(hold, 0, Outcome.RELEASED, Settlement(cost=Nano(0), status=status))

    def record(self, account: str, period: str, draft: Entry) -> None:
        """Charge a call that had no hold, as the 371OS guide's interface does; `draft` lacks its
        `seq`."""
        self._last_seq += 1
        self._check_cost(checked(draft.cost, "cost"), self._read(account, period))
        self.changes.entries[draft.id] = EntryRow(replace(draft, seq=self._last_seq), (account,))
        self._changing(account, period).spent += draft.cost

    def spent(self, account: str, period: str) -> Nano:
        """Tell what an account spent in a period."""
        return Nano(self._read(account, period).total)

    def cursor(self, name: str) -> int:
        """Tell how far a consumer of the rows has come."""
        return self.changes.cursors.get(name) or self._shelf.cursor(name)

    def sweep(self) -> None:
        """Charge the holds of earlier owners of the file: nobody knows what became of them."""
        orphans = [hold for hold in self.holds.values() if hold.epoch < self.header.epoch]
        for hold in orphans:
            unknown = Settlement(cost=None, status=Status.ERROR)
            self._resolve(hold, hold.amount, Outcome.UNKNOWN, unknown)

    def _resolve(
        self, hold: OpenHold, cost: int, outcome: Outcome, settlement: Settlement
    ) -> Entry:
        del self.holds[hold.id]
        if self.changes.opened.pop(hold.id, None) is None:
            self.changes.closed.append(hold.id)
        entry = self._write(hold, cost, outcome, settlement)
        within = min(cost, hold.amount)
        self._charge(hold.path, hold.period, spent=within, overage=cost - within, held=-hold.amount)
        return entry

    def _write(self, hold: OpenHold, cost: int, outcome: Outcome, settlement: Settlement) -> Entry:
        self._last_seq += 1
        entry = Entry(
            seq=self._last_seq,
            id=hold.id,
            ts=self._clock().astimezone(UTC),
            account=hold.path[0],
            period=hold.period,
            provider=hold.provider,
            model=hold.model,
            tokens_in=settlement.tokens_in,
            tokens_out=settlement.tokens_out,
            cost=Nano(cost),
            held=Nano(hold.amount),
            task_id=hold.task_id,
            agent=hold.agent,
            status=settlement.status,
            outcome=outcome,
        )
        self.changes.entries[entry.id] = EntryRow(entry, hold.path)
        return entry

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

    def acknowledge(self, action_id: str) -> None:
        """Mark an action as done."""
        row = self._action(action_id)
        if row is not None and not row.acknowledged:
            self._record(replace(row, acknowledged=True))

    def _record(self, row: ActionRow) -> None:
        self._actions[row.id] = row
        self.changes.actions[row.id] = row

    def advance(self, name: str, seq: int) -> None:
        """Store how far a consumer of the rows has come."""
        self.changes.cursors[name] = checked(seq, "seq")

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

    def changed_accounts(self) -> set[str]:
        """List the configured accounts whose balance this transaction may have changed."""
        if self.changes.header:
            names = set(self.accounts)
        else:
            names = {name for name, period in self.changes.figures if period == self.period}
        return {name for name in names if name in self.accounts and self.accounts[name].active}

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


def _fits(account: Account, spent: int, held: int, amount: int) -> bool:
    """Tell whether a call's bound has room. A free call has none where the cap is reached, unless
    the account lets free calls go on."""
    if account.cap is None:
        return True
    if amount == 0 and not account.blocks:
        return True
    return spent + held + amount <= account.cap and (amount > 0 or spent < account.cap)


def _check_tree(accounts: dict[str, Account]) -> None:
    for account in accounts.values():
        seen = {account.name}
        parent = account.parent
        while parent is not None:
            if parent not in accounts:
                raise ValueError(f"{account.name}: its ancestor {parent} is not configured")
            if parent in seen:
                raise ValueError(f"{account.name}: its ancestors form a circle")
            seen.add(parent)
            parent = accounts[parent].parent
