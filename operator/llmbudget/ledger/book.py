"""The book: money moved in memory, within one transaction.

A book is read once and then kept: where several processes own a ledger, it catches up with the
others' commits at the beginning of each transaction. Each operation checks first and then changes
the book and its `changes`, so that a refused operation leaves no trace; the store writes the
changes in the transaction that ran the operations, and throws the book away when that transaction
fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC
from zoneinfo import ZoneInfoNotFoundError

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.decide.periods import period_at
from llmbudget.decide.thresholds import awaiting_approval, crossed
from llmbudget.ledger.interface import (
    AwaitingApproval,
    BudgetExceeded,
    Entry,
    Hold,
    HoldRequest,
    LedgerError,
    Outcome,
    RepeatedCall,
    Settlement,
    Status,
)
from llmbudget.ledger.pages import Pages
from llmbudget.ledger.records import (
    LIMIT,
    Account,
    EntryRow,
    KeyRow,
    OpenHold,
    checked,
)


class Book(Pages):
    """What can be done to a ledger, within one transaction."""

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
            if not account.thresholds:
                continue
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

    def sweep(self, orphans: Sequence[OpenHold]) -> None:
        """Charge holds whose owner is gone: nobody knows what became of them."""
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

    def acknowledge(self, action_id: str) -> None:
        """Mark an action as done."""
        row = self._action(action_id)
        if row is not None and not row.acknowledged:
            self._record(replace(row, acknowledged=True))

    def forget(self, before: str, limit: int) -> int:
        """Drop single rows of periods before one, which is not later than the current; the sums of
        their months stay. Tell how many went."""
        found = self._shelf.older(min(before, self.period), limit)
        self.changes.forgotten += found
        return len(found)

    def advance(self, name: str, seq: int) -> None:
        """Store how far a consumer of the rows has come."""
        self.changes.cursors[name] = checked(seq, "seq")


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
