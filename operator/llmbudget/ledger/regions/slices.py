"""The authority's holders and their slices, and what of these nobody knows to have been spent."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC
from typing import Final, Protocol, cast
from uuid import NAMESPACE_URL, uuid5

from llmbudget.api.money import Nano
from llmbudget.ledger.book import Book
from llmbudget.ledger.interface import (
    Entry,
    Outcome,
    Status,
)
from llmbudget.ledger.pages import Shelf
from llmbudget.ledger.records import EntryRow, Figures, Holder, Slice

SLICE: Final = "slice"
"""Provider, in the row of what nobody knows to have been spent from a slice; its model is the
region."""


class SliceShelf(Shelf, Protocol):
    """Where the rows of slices are found."""

    def holders(self) -> Sequence[Holder]:
        """List all holders."""

    def slices(self, holder: str | None) -> Sequence[Slice]:
        """List the slices of a holder that are unfinished or of the current period; None: of all
        holders."""

    def slice(self, holder: str, account: str, period: str) -> Slice | None:
        """Find a slice."""

    def used(self, ids: Collection[str], since: str) -> set[str]:
        """List those ids that holds have, or entries of the periods from one on."""


class Slices(Book):
    """A book that also knows slices."""

    # Holders

    @property
    def _rows(self) -> SliceShelf:
        return cast(SliceShelf, self._shelf)

    def _holder(self, holder_id: str) -> Holder | None:
        return self._holders().get(holder_id)

    def _holders(self) -> dict[str, Holder]:
        """List all holders, as this transaction leaves them."""
        return {each.id: each for each in self._rows.holders()} | self.changes.holders

    def _know_holder(self, holder: Holder) -> Holder:
        self.changes.holders[holder.id] = holder
        return holder

    def _regions(self) -> int:
        return sum(not each.lost for each in self._holders().values())

    # Slices

    def _changing(self, name: str, period: str) -> Figures:
        figures = super()._changing(name, period)
        if self.header.period is not None and period < self.header.period:
            figures.closed = True  # Also where nothing had happened in it when it ended.
        return figures

    def _slice(self, holder: str, account: str, period: str) -> Slice | None:
        changed = self.changes.slices.get((holder, account, period))
        return changed or self._rows.slice(holder, account, period)

    def _slices_of(self, holder: str | None) -> list[Slice]:
        """List a holder's slices, as this transaction leaves them; None: those of all holders."""
        stored = {(s.holder, s.account, s.period): s for s in self._rows.slices(holder)}
        changed = {k: s for k, s in self.changes.slices.items() if holder in (None, k[0])}
        return list((stored | changed).values())

    def _store(self, changed: Slice) -> Slice:
        self.changes.slices[changed.holder, changed.account, changed.period] = changed
        return changed

    def _hold(self, found: Slice, amount: int) -> None:
        for name in found.path:
            self._changing(name, found.period).held += amount
        if amount < 0:
            self._cut_loans(found.path)

    # What nobody knows

    def _draw_unknown(
        self, found: Slice, amount: int, *, shipped: int = 0, returned: int = 0
    ) -> int:
        """Count an amount as known, first of what was charged as unknown; tell how much of it
        that was."""
        drawn = min(amount, found.unknown)
        self._store(
            replace(
                found,
                shipped=found.shipped + shipped,
                returned=found.returned + returned,
                unknown=found.unknown - drawn,
            )
        )
        if drawn:
            self._uncharge_unknown(found, drawn)
        return drawn

    def _unknown_rows(self, found: Slice) -> list[EntryRow]:
        """List the rows of what nobody knows: one for each path that it was charged to, since the
        account may have moved meanwhile."""
        rows: list[EntryRow] = []
        while (row := self._entry(_unknown_id(found, len(rows)))) is not None:
            rows.append(row)
        return rows

    def _note_unknown(self, found: Slice, amount: int) -> None:
        """Add to the row of what nobody knows and is charged where the account is now."""
        rows = self._unknown_rows(found)
        row = next((each for each in rows if each.path == found.path), None)
        if row is None:
            self._last_seq += 1
            row = EntryRow(self._unknown_row(_unknown_id(found, len(rows)), found), found.path)
            self.changes.entries[row.entry.id] = row
        self._change_unknown(row, amount)

    def _uncharge_unknown(self, found: Slice, amount: int) -> None:
        """Take something from the rows of what nobody knows, and from whom it was charged to."""
        left = amount
        for row in reversed(self._unknown_rows(found)):
            part = min(left, row.entry.cost)
            if part:
                self._change_unknown(row, -part)
                self._charge(row.path, found.period, spent=-part, overage=0, held=0, lent=0)
                left -= part
        if left:
            # Its row was forgotten with its month.
            self._charge(found.path, found.period, spent=-left, overage=0, held=0, lent=0)

    def _change_unknown(self, row: EntryRow, amount: int) -> None:
        id, cost = row.entry.id, Nano(row.entry.cost + amount)
        rows = self.changes.entries if id in self.changes.entries else self.changes.corrected
        rows[id] = replace(row, entry=replace(row.entry, cost=cost, held=cost))

    def _unknown_row(self, id: str, found: Slice) -> Entry:
        holder = self._holder(found.holder)
        return Entry(
            seq=self._last_seq,
            id=id,
            ts=self._clock().astimezone(UTC),
            account=found.account,
            period=found.period,
            provider=SLICE,
            model=holder.region if holder is not None else found.holder,
            tokens_in=0,
            tokens_out=0,
            cost=Nano(0),
            held=Nano(0),
            task_id=None,
            agent=None,
            status=Status.ERROR,
            outcome=Outcome.UNKNOWN,
        )


def _unknown_id(found: Slice, number: int) -> str:
    """Name one of the rows of what nobody knows to have been spent from a slice."""
    name = f"slice {found.holder} {found.account} {found.period}"
    return uuid5(NAMESPACE_URL, f"{name} {number}" if number else name).hex
