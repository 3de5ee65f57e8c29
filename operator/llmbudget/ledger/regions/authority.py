"""The authority's book: slices granted, rows of regions booked, silent regions written off."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.decide.periods import months_before
from llmbudget.decide.slices import slice_size
from llmbudget.ledger.interface import (
    Entry,
    Settlement,
    Status,
)
from llmbudget.ledger.records import EntryRow, Holder, Slice, checked
from llmbudget.ledger.regions.messages import Answer, Granted, LedgerWentBack, TablesReplaced, Told
from llmbudget.ledger.regions.slices import Slices

_MONTH: Final = re.compile("[0-9]{4}-(0[1-9]|1[0-2])")
_LATE_MONTHS: Final = 2
"""So many months ago a row may be of that no slice was granted for: one of a free call."""

log = logging.getLogger(__name__)


class AuthorityBook(Slices):
    """A book that also gives slices to regions."""

    # Configuration

    def configure(
        self, configs: Sequence[AccountConfig], *, time_zone: str, generation: int
    ) -> bool:
        """See `Book.configure`. What is held for regions goes along when an account is moved in the
        tree, and may block those above it there."""
        taken = super().configure(configs, time_zone=time_zone, generation=generation)
        if taken:
            for found in self._slices_of(None):
                path = self._names_above(found.account)
                if path and path != found.path and self.accounts[found.account].active:
                    moved = self._store(replace(found, path=path))
                    # In this order: who is above it here and there is without it at no time.
                    self._hold(moved, found.outstanding)
                    self._hold(found, -found.outstanding)
        return taken

    # What regions ask

    def grant(self, holder: Holder, account: str, asked: int, least: int) -> Granted:
        """Give a region a slice for calls that ask for some money together, of which the smallest
        needs `least`.

        Raises:
            UnknownAccount, AwaitingApproval.
            BudgetExceeded: there is not even room for the smallest.
            TablesReplaced: the region has other tables.
            LedgerWentBack: its database comes from a backup.
        """
        known = self._heard(holder)
        if known.replaced:
            raise TablesReplaced(holder.region)
        path = self._path(account)
        self._refuse_unapproved(path)
        least = max(1, checked(least, "amount"))
        asked = max(least, checked(asked, "amount"))
        size = max(least, slice_size(asked, self._left(path), self._regions()))
        self._refuse_exceeding(path, size)
        names = tuple(each.name for each in path)
        found = self._slice(known.id, account, self.period)
        found = found or Slice(known.id, account, self.period, names)
        found = self._store(replace(found, granted=found.granted + size))
        self._hold(found, size)
        return Granted(account, self.period, found.granted, size)

    def hear(self, holder: Holder, told: Told) -> Answer:
        """Book what a region tells, each thing once however often it is told. A row that no call
        can have left is passed over, and the log says so: one region's database must not spoil the
        budget for all.

        Raises:
            LedgerWentBack: its database comes from a backup.
        """
        known = self._heard(holder)
        if told.after <= known.shipped_seq:
            rows = [row for row in told.rows if row.seq > known.shipped_seq]
            used = self._used(rows)
            for row in rows:
                if row.period == months_before(self.period, -1):
                    break  # Its clock is ahead: as soon as the month is here, too.
                self._book_checked(known, row, used)
                known = self._know_holder(replace(known, shipped_seq=row.seq, shipped_id=row.id))
        for (account, period), total in told.returned.items():
            self._take_back(known, account, period, checked(total, "returned"))
        return Answer(
            shipped_seq=known.shipped_seq,
            shipped_id=known.shipped_id,
            period=self.period,
            regions=self._regions(),
            slices={(s.account, s.period): s for s in self._slices_of(known.id)},
        )

    def distrust(self, holder: Holder) -> None:
        """Hear and give nothing more to a holder whose database comes from a backup, as its
        gateways found."""
        known = self._holder(holder.id)
        if known is not None and not known.went_back:
            self._know_holder(replace(known, went_back=True))

    def write_off(self, holders: Iterable[str]) -> None:
        """Charge what silent regions hold: nobody knows what became of it. Rows that come late are
        taken from it, and what they then give back is."""
        for holder in holders:
            for found in self._slices_of(holder):
                lost = found.outstanding
                if lost > 0:
                    self._store(replace(found, unknown=found.unknown + lost))
                    self._note_unknown(found, lost)
                    self._charge(
                        found.path, found.period, spent=lost, overage=0, held=-lost, lent=0
                    )
            known = self._holder(holder)
            if known is not None:
                self._know_holder(replace(known, lost=True))

    def _heard(self, holder: Holder) -> Holder:
        """Take down that a holder lives. Another one of the same region is gone: its tables were
        made anew.

        Raises:
            LedgerWentBack: it is silent for all that it may say.
        """
        self.period  # noqa: B018  # Nothing is done before the first configuration.
        known = self._holder(holder.id)
        if known is None:
            others = [each for each in self._holders().values() if each.region == holder.region]
            self.write_off(other.id for other in others if not other.lost)
            for other in others:
                self._know_holder(replace(other, lost=True, replaced=True))
            known = Holder(holder.id, holder.region)
        if known.went_back:
            raise LedgerWentBack(holder.region)
        return self._know_holder(replace(known, beats=known.beats + 1, lost=known.replaced))

    # Bookings

    def _used(self, rows: Sequence[Entry]) -> set[str]:
        """List those rows' ids that the ledger has already."""
        if not rows:
            return set()
        ids = {row.id for row in rows}
        return self._rows.used(ids, min(row.period for row in rows)) | (ids & self.holds.keys())

    def _book_checked(self, holder: Holder, row: Entry, used: set[str]) -> None:
        found = self._slice(holder.id, row.account, row.period)
        path = self._names_above(row.account) if found is None else found.path
        try:
            self._check_figures(row)
            self._check_period(row, found)
            if not path:
                raise ValueError(f"there is no account {row.account}")
            self._check_room(path, row.period, row.cost)
            dearer = self._is_dearer(row, used)
        except ValueError as error:
            fields = {"region": holder.region, "id": row.id, "why": str(error)}
            log.error("row of a region is not booked", extra={"fields": fields})
            return
        if dearer:
            status = Status(row.status or "ok")
            settlement = Settlement(row.cost, row.tokens_in, row.tokens_out, status)
            self._settle_late(row.id, settlement)
        else:
            self._book(row, found, path)

    @staticmethod
    def _check_figures(row: Entry) -> None:
        checked(row.cost, "cost")
        checked(row.held, "held")
        checked(row.tokens_in, "tokens_in")
        checked(row.tokens_out, "tokens_out")
        Status(row.status or "ok")

    def _check_period(self, row: Entry, found: Slice | None) -> None:
        """Refuse what is of no month in which the region can have spent: it would be counted where
        nobody looks, and have a partition made."""
        month = _MONTH.fullmatch(row.period) and row.period <= self.period
        late = row.period < months_before(self.period, _LATE_MONTHS)
        if not month or (late and found is None):
            raise ValueError(f"it is of {row.period!r}, and the month is {self.period}")

    def _is_dearer(self, row: Entry, used: set[str]) -> bool:
        """Tell whether a row is booked already, charged in full at first and then found to be
        dearer.

        Raises:
            ValueError: its id is another call's.
        """
        changes = self.changes
        booked = changes.entries.get(row.id) or changes.corrected.get(row.id)
        if booked is None and row.id in used:
            booked = self._entry(row.id)
            if booked is None:
                raise ValueError("its id is that of a call that is under way")
        if booked is None:
            return False
        if row.cost <= row.held or _call(row) != _call(booked.entry):
            raise ValueError("its id is booked already")
        return True

    def _book(self, row: Entry, found: Slice | None, path: tuple[str, ...]) -> None:
        """Book one row of a region: what its hold covers comes out of its slice."""
        within = min(row.cost, row.held)
        covered = 0
        if found is not None:
            covered = min(within, found.outstanding + found.unknown)
            # Held before it is taken from what is charged: no loan may look given back meanwhile.
            self._hold(found, min(covered, found.unknown))
            self._draw_unknown(found, covered, shipped=covered)
        self._last_seq += 1
        entry = replace(
            row, seq=self._last_seq, held=row.held if covered == within else Nano(covered)
        )
        self.changes.entries[entry.id] = EntryRow(entry, path)
        self._charge(
            path,
            row.period,
            spent=covered,
            overage=row.cost - covered,
            held=-covered,
            lent=0,
        )

    def _take_back(self, holder: Holder, account: str, period: str, total: int) -> None:
        found = self._slice(holder.id, account, period)
        if found is None or total <= found.returned:
            return
        amount = min(total - found.returned, found.outstanding + found.unknown)
        drawn = self._draw_unknown(found, amount, returned=amount)
        self._hold(found, drawn - amount)


def _call(entry: Entry) -> tuple[str, str, str, str]:
    """Tell what stays of a call's row when it is told once more."""
    return entry.account, entry.period, entry.provider, entry.model
