"""What must hold of regions and their authority, by the bill that the calls kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.simulation.database import Broken
from tests.simulation.regional import Call
from tests.simulation.shared import SharedDatabase
from tests.simulation.tables import Tables

from llmbudget.contract.config import AccountConfig
from llmbudget.ledger.interface import Outcome
from llmbudget.ledger.records import TransferKind
from llmbudget.ledger.regions.slices import SLICE

Key = tuple[str, str]
"""Account and period."""


@dataclass(slots=True)
class Books:
    """All that there is to compare."""

    root: str
    authority: SharedDatabase
    databases: Sequence[SharedDatabase]
    """The authority's among them."""
    calls: dict[str, Call] = field(default_factory=dict)
    configs: dict[str, list[AccountConfig]] = field(default_factory=dict)
    """All that ever held, by account."""
    forgotten: set[str] = field(default_factory=set)
    """Calls that a database which was restored knows nothing of."""
    restored: dict[str, float] = field(default_factory=dict)
    """When tables came from a backup first."""

    def configured(self, accounts: Iterable[AccountConfig]) -> None:
        """Take down what accounts may spend from now on."""
        for account in accounts:
            self.configs.setdefault(account.name, []).append(account)

    def check(self) -> None:
        """Compare everything, when all have ended."""
        self.check_sums()
        self._check_rows()
        self.check_missing(ended=True)
        self._check_caps()

    @property
    def _tables(self) -> Tables:
        return self.authority.tables

    def check_sums(self) -> None:
        """Every account of the authority is the sum of its rows, holds what calls and slices hold,
        has set aside what envelopes reserve, and has of other months what transfers brought."""
        tables = self._tables
        sums: dict[str, Counter[Key]] = {
            what: Counter() for what in ("spent", "held", "lent", *TransferKind)
        }
        for row in tables.entry_rows.values():
            _add(sums["spent"], row.path, row.entry.period, row.entry.cost)
        for hold in tables.holds.values():
            if hold.envelope is None:
                _add(sums["held"], hold.path, hold.period, hold.amount)
        for each in tables.slice_rows.values():
            if each.outstanding < 0:
                raise Broken(f"more came back than was given: {each}")
            _add(sums["held"], each.path, each.period, each.outstanding)
        for envelope in tables.envelope_rows.values():
            _add(sums["lent"], envelope.path, envelope.period, envelope.reserved)
        for transfer in tables.transfers.values():
            sums[transfer.kind][transfer.account, transfer.period] += transfer.amount
        for key, figures in tables.sums.items():
            found = {
                "spent": figures.spent + figures.overage,
                "held": figures.held,
                "lent": figures.lent,
                TransferKind.DEBIT: figures.debit,
                TransferKind.ROLLOVER: figures.rolled,
            }
            for what, amount in found.items():
                if amount != sums[what][key]:
                    raise Broken(f"{key}: {what} {amount}, and its rows say {sums[what][key]}")
        self._check_envelopes()

    def _check_envelopes(self) -> None:
        """Each envelope is what its calls say, and they were billed no more than it had."""
        tables = self._tables
        spent: Counter[str | None] = Counter()
        held: Counter[str | None] = Counter()
        billed: Counter[str | None] = Counter()
        for row in tables.entry_rows.values():
            spent[row.entry.envelope] += row.entry.cost
        for hold in tables.holds.values():
            held[hold.envelope] += hold.amount
        for call in self.calls.values():
            billed[call.envelope] += call.within
        for id, each in tables.envelope_rows.items():
            if (each.spent, each.held) != (spent[id], held[id]):
                raise Broken(f"{each}, its rows {spent[id]}, its holds {held[id]}")
            if billed[id] > each.cap:
                raise Broken(f"I1: envelope {id} of {each.cap} was billed {billed[id]}")

    def _check_rows(self) -> None:
        """I2: what a provider bills has one row, and what no provider bills costs nothing, or is
        unknown."""
        rows = self._tables.entry_rows
        for row in rows.values():
            entry = row.entry
            if entry.provider == SLICE:
                continue
            call = self.calls[entry.id]
            if entry.outcome is Outcome.RELEASED and call.billed is not None:
                raise Broken(f"I2: {entry.id} was billed {call.billed} and released")
            if entry.outcome is Outcome.METERED and entry.cost != call.billed:
                raise Broken(f"{entry.id} was billed {call.billed} and charged {entry.cost}")
            if entry.cost < call.within:
                raise Broken(f"{entry.id} was billed {call.billed} and charged {entry.cost}")

    def check_missing(self, *, ended: bool) -> None:
        """No money is lost: what has no row was in a database that is gone, and is charged as
        unknown, all of it. What the last gateways of a region could not tell any more is held until
        it is."""
        tables = self._tables
        missing: Counter[tuple[str, str, str]] = Counter()
        for call in self._unbooked():
            incarnation = self._place(call)[0]
            holder = tables.holder_rows.get(incarnation)
            if holder is None or not (holder.lost or ended or self._is_open(call)):
                raise Broken(f"I2: {call.id} was billed {call.billed} and has no row, {holder}")
            missing[incarnation, call.account, call.period] += call.within
        for key, billed in missing.items():
            found = tables.slice_rows.get(key)
            if found is None or billed > found.unknown + found.outstanding:
                raise Broken(f"{billed} was billed in {key}, and is not charged: {found}")

    def _is_open(self, call: Call) -> bool:
        return any(call.id in database.tables.holds for database in self.databases)

    def _unbooked(self) -> Iterable[Call]:
        """List what was billed and has no row, but for what no ledger can know: what a database
        that was restored has forgotten, and spent until that was found."""
        rows, holders = self._tables.entry_rows, self._tables.holder_rows
        for call in self.calls.values():
            if call.billed is None or call.id in rows or call.id in self.forgotten:
                continue
            incarnation, opened = self._place(call)
            holder = holders.get(incarnation)
            since = self.restored.get(incarnation, opened)
            if holder is None or not holder.went_back or opened <= since:
                yield call

    def _place(self, call: Call) -> tuple[str, float]:
        return next(each.opened[call.id] for each in self.databases if call.id in each.opened)

    def _check_caps(self) -> None:
        """I1 by the bill: no account has in a month more than its highest cap, what it carried
        there and what it may borrow, and what it carries on is none of what it spent. All that
        lend have together no more than they have of their own."""
        rows = self._tables.entry_rows
        billed: Counter[Key] = Counter()
        known = [call for call in self.calls.values() if call.id in rows]
        for call in (*known, *self._unbooked()):
            for name in {self.root, call.account}:
                billed[name, call.period] += call.within
        rolled: Counter[Key] = Counter()
        for transfer in self._tables.transfers.values():
            if transfer.kind is TransferKind.ROLLOVER:
                rolled[transfer.account, transfer.period] += transfer.amount
                billed[transfer.account, transfer.source or ""] += transfer.amount
                most = max(each.rollover_nano for each in self.configs[transfer.account])
                if transfer.amount > most:
                    raise Broken(f"{transfer} is more than {most}")
        together: Counter[str] = Counter()
        for (name, period), total in billed.items():
            configs = self.configs[name]
            limits = [each.borrowing.limit_nano for each in configs if each.borrowing]
            own = max(2**62 if each.cap_nano is None else each.cap_nano for each in configs)
            own += rolled[name, period]
            if total > own + max(limits, default=0):
                raise Broken(f"I1: {name} was billed {total} in {period}, and had {own}")
            if limits:
                together[period] += total - own
        for period, beyond in together.items():
            idle = sum(
                max(each.cap_nano or 0 for each in configs) + rolled[name, period]
                for name, configs in self.configs.items()
                if any(each.borrowing for each in configs) and (name, period) not in billed
            )
            if beyond > idle:
                raise Broken(f"I1: siblings were billed {beyond} more than they had in {period}")


def _add(sums: Counter[Key], path: Iterable[str], period: str, amount: int) -> None:
    for name in path:
        sums[name, period] += amount
