"""The book: money moved in memory, within one transaction.

A book is read once and then kept: where several processes own a ledger, it catches up with the
others' commits at the beginning of each transaction. Each operation checks first and then changes
the book and its `changes`, so that a refused operation leaves no trace; the store writes the
changes in the transaction that ran the operations, and throws the book away when that transaction
fails.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC
from typing import Final
from zoneinfo import ZoneInfoNotFoundError

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.decide.periods import period_at
from llmbudget.ledger.envelopes import Envelopes
from llmbudget.ledger.interface import (
    Entry,
    Hold,
    HoldRequest,
    LedgerError,
    Outcome,
    RepeatedCall,
    Settlement,
    Status,
)
from llmbudget.ledger.records import (
    Account,
    EntryRow,
    KeyRow,
    Loan,
    OpenHold,
    TopUp,
    Transfer,
    TransferKind,
    checked,
)

FORGOTTEN: Final = "rows forgotten before"
"""Cursor: the month, as 202611, before which single rows may be missing."""


class Book(Envelopes):
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
        current = self.header.period or period.name
        granted: list[Transfer] = []
        loans = self._open_loans()
        accounts = {
            config.name: Account.configured(
                config,
                checked(generation, "generation"),
                self._top_ups(config, current, granted),
                loans.get(config.name),
            )
            for config in configs
        }
        _check_tree(accounts)
        for transfer in granted:
            self._post(transfer)
        if self.header.period is None:
            self.header.period, self.header.time_zone = period.name, time_zone
        self.header.next_time_zone = time_zone
        self.header.generation = generation
        self.changes.header = True
        for account in list(self.accounts.values()):
            left_out = replace(account, active=False, loan=loans.get(account.name))
            if account.name not in accounts and account != left_out:
                self._put(left_out)
        for account in accounts.values():
            self._put(account)
        self.end_moved()
        self._cut_loans(self.accounts)
        self._set_alarm()
        self._evaluate(accounts)
        return True

    def _open_loans(self) -> dict[str, Loan]:
        """Tell who has money of whom, by the terms that are in force, and by former ones: where a
        cap was lowered, or removed, less may show than a sibling has spent."""
        loans: dict[str, Loan] = {}
        for account in self.accounts.values() if self.header.period is not None else ():
            old, found = account.loan_in(self.period), self._loans(account)
            parent = account.cohort(self.period)
            if old is not None:
                loans[account.name] = replace(
                    old,
                    borrowed=max(old.borrowed, found.borrowed),
                    lent=max(old.lent, found.lent),
                )
            elif parent is not None and (found.borrowed or found.lent):
                loans[account.name] = Loan(self.period, parent, found.borrowed, found.lent)
        return loans

    def _top_ups(
        self, config: AccountConfig, current: str, granted: list[Transfer]
    ) -> tuple[TopUp, ...]:
        """Find an account's top-ups as the ledger took them over, each once and for good."""
        now = self._clock()
        found: list[TopUp] = []
        for written in config.top_ups:
            key = f"{TransferKind.TOP_UP}/{config.name}/{written.id}"
            known = self._transfer(key)
            if known is None:
                if written.expires <= now:
                    continue
                amount = checked(written.amount_nano, f"top-up {written.id}")
                if not amount:
                    raise ValueError(f"{config.name}: top-up {written.id} must be above 0")
                known = Transfer(
                    id=key,
                    ts=now.astimezone(UTC),
                    kind=TransferKind.TOP_UP,
                    account=config.name,
                    period=current,
                    amount=amount,
                    by=written.by,
                    reason=written.reason,
                    expires=written.expires.astimezone(UTC),
                )
                granted.append(known)
            expires = min(known.expires or written.expires, written.expires)
            found.append(TopUp(written.id, known.amount, known.period, expires.astimezone(UTC)))
        return tuple(found)

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
        if request.envelope is None:
            remaining = self._refuse_exceeding(path, amount)
        else:
            envelope = self._opening(request, amount)
            self._refuse_overdrawn(path, amount)
            remaining = Nano(envelope.left - amount)
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
            envelope=request.envelope,
        )
        if hold.envelope is None:
            for name in hold.path:
                self._changing(name, hold.period).held += amount
        else:
            self._draw(hold.envelope, spent=0, held=amount)
        self.holds[hold.id] = hold
        self.changes.opened[hold.id] = hold
        key = KeyRow.of(request, hold.period)
        if key is not None:
            self.changes.keys[(key.consumer, key.key)] = key
        return Hold(hold.id, request.account, request.amount, hold.period, remaining)

    def _granted(self, hold: OpenHold) -> Hold:
        """Say once more what was granted, and what is left now."""
        if hold.envelope is not None:
            envelope = self._envelope(hold.envelope)
            remaining = None if envelope is None else Nano(envelope.left)
        else:
            remaining = self._left([self.accounts[name] for name in hold.path])
        return Hold(hold.id, hold.path[0], Nano(hold.amount), hold.period, remaining)

    def _refuse_repeated(self, request: HoldRequest) -> None:
        if self._entry(request.id) is not None:
            raise LedgerError(f"entry {request.id} is already resolved")
        if request.idempotency_key is None:
            return
        used = self._key(request.consumer or "", request.idempotency_key)
        if used is not None:
            first = self._entry(used.entry)
            raise RepeatedCall(
                used.entry,
                None if first is None else first.entry.cost,
                same_request=used.fingerprint == request.fingerprint,
            )

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
        beyond = cost - found.cost
        lent = self._draw(found.envelope, spent=beyond, held=0) if found.envelope else 0
        self._charge(row.path, found.period, spent=0, overage=beyond, held=0, lent=lent)
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

    def take_over(self, source: str, account: str, drafts: Iterable[Entry]) -> bool:
        """Charge the calls that another ledger counted before, all of them, once for each source;
        tell whether it was the first time.

        Raises:
            ValueError: a figure is negative or beyond what the ledger counts.
        """
        if self.cursor(source):
            return False
        charged, sums = list(drafts), defaultdict[str, int](int)
        for draft in charged:
            sums[draft.period] += checked(draft.cost, "cost")
        for period, cost in sums.items():
            self._check_cost(cost, self._read(account, period))
        for draft in charged:
            self.record(account, draft.period, draft)
        current = self.header.period or period_at(self._clock(), "UTC").name
        for period in sums:
            if period < current:
                self._changing(account, period).closed = True
        self.advance(source, 1)
        self._evaluate((account,))
        return True

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
        held, lent = -hold.amount, 0
        if hold.envelope is not None:
            held, lent = 0, self._draw(hold.envelope, spent=cost, held=held)
        within = min(cost, hold.amount)
        self._charge(
            hold.path, hold.period, spent=within, overage=cost - within, held=held, lent=lent
        )
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
            envelope=hold.envelope,
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
        before = min(before, self.period)
        found = self._shelf.older(before, limit)
        self.changes.forgotten += found
        if found:
            month = int(before.replace("-", ""))
            self.advance(FORGOTTEN, max(month, self.cursor(FORGOTTEN)))
        return len(found)

    def advance(self, name: str, seq: int) -> None:
        """Store how far a consumer of the rows has come."""
        self.changes.cursors[name] = checked(seq, "seq")


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
