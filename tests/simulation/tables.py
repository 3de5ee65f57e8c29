"""The tables of a shared ledger in memory, as PostgreSQL keeps them for regions: what is committed,
what a backup of it is, and what a book reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Self

from llmbudget.ledger.interface import ActionRow, Entry, Envelope
from llmbudget.ledger.records import (
    Account,
    Changes,
    EntryRow,
    Figures,
    Header,
    Holder,
    KeyRow,
    OpenHold,
    Slice,
    Transfer,
)


@dataclass(slots=True)
class Tables:
    """One ledger's rows, and the statements that read and write them (`postgres.rows`,
    `postgres.writing`). Rows don't change in place, but for sums, which go in and out as copies."""

    header: Header
    """Its epoch is the last that an owner got."""
    last: int = 0
    """`seq` of the newest entry."""
    commits: dict[int, int] = field(default_factory=dict)
    """By owner."""
    account_rows: dict[str, Account] = field(default_factory=dict)
    sums: dict[tuple[str, str], Figures] = field(default_factory=dict)
    holds: dict[str, OpenHold] = field(default_factory=dict)
    entry_rows: dict[str, EntryRow] = field(default_factory=dict)
    numbers: dict[int, str] = field(default_factory=dict)
    """Ids of entries by `seq`."""
    keys: dict[tuple[str, str], KeyRow] = field(default_factory=dict)
    envelope_rows: dict[str, Envelope] = field(default_factory=dict)
    transfers: dict[str, Transfer] = field(default_factory=dict)
    action_rows: dict[str, ActionRow] = field(default_factory=dict)
    holder_rows: dict[str, Holder] = field(default_factory=dict)
    slice_rows: dict[tuple[str, str, str], Slice] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def made_anew(cls, incarnation: str) -> Self:
        """Make empty ones."""
        return cls(Header(0, 0, None, "UTC", "UTC", incarnation))

    def backup(self) -> Self:
        """Copy all that there is."""
        return deepcopy(self)

    # Writing

    def enlist(self) -> int:
        """Take a new owner in; tell its number."""
        self.header.epoch += 1
        self.commits[self.header.epoch] = 0
        return self.header.epoch

    def write(self, header: Header, last_seq: int, changes: Changes) -> None:
        """Take over what a transaction changed."""
        self.header = replace(header, epoch=self.header.epoch)
        self.last = last_seq
        if changes.keys_before is not None:
            self.keys = {k: v for k, v in self.keys.items() if v.period >= changes.keys_before}
        for row in (*changes.entries.values(), *changes.corrected.values()):
            known = self.entry_rows.get(row.entry.id)
            if known is not None:
                del self.numbers[known.entry.seq]
            self.entry_rows[row.entry.id] = row
            self.numbers[row.entry.seq] = row.entry.id
        self.holds |= changes.opened
        for hold_id in changes.closed:
            del self.holds[hold_id]
        self.account_rows |= changes.accounts
        self.sums |= {key: replace(figures) for key, figures in changes.figures.items()}
        self.envelope_rows |= changes.envelopes
        self.transfers |= changes.transfers
        for seq in changes.forgotten:
            del self.entry_rows[self.numbers.pop(seq)]
        for key in changes.freed:
            self.keys.pop(key, None)
        self.keys |= changes.keys
        self.action_rows |= changes.actions
        self.holder_rows |= changes.holders
        self.slice_rows |= changes.slices
        self.cursors |= changes.cursors

    # Reading: the shelf of a book

    def figures(self, account: str, period: str) -> Figures | None:
        found = self.sums.get((account, period))
        return None if found is None else replace(found)

    def entry(self, entry_id: str) -> EntryRow | None:
        return self.entry_rows.get(entry_id)

    def key(self, consumer: str, key: str) -> KeyRow | None:
        return self.keys.get((consumer, key))

    def action(self, action_id: str) -> ActionRow | None:
        return self.action_rows.get(action_id)

    def envelope(self, envelope_id: str) -> Envelope | None:
        return self.envelope_rows.get(envelope_id)

    def transfer(self, transfer_id: str) -> Transfer | None:
        return self.transfers.get(transfer_id)

    def cursor(self, name: str) -> int:
        return self.cursors.get(name, 0)

    def actions(self, period: str | None) -> Sequence[ActionRow]:
        rows = self.action_rows.values()
        return [row for row in rows if row.period == period or not row.acknowledged]

    def accounts_in(self, period: str) -> Sequence[str]:
        return [account for account, each in self.sums if each == period]

    def older(self, period: str, limit: int) -> Sequence[int]:
        rows = (self.entry_rows[id].entry for id in self.numbers.values())
        found = [row.seq for row in rows if row.period < period and row.seq < self.last]
        return found[:limit]

    def holders(self) -> Sequence[Holder]:
        return list(self.holder_rows.values())

    def slices(self, holder: str | None) -> Sequence[Slice]:
        period = self.header.period or ""
        return [
            each
            for each in self.slice_rows.values()
            if holder in (None, each.holder)
            and (each.granted - each.shipped - each.returned > 0 or each.period >= period)
        ]

    def slice(self, holder: str, account: str, period: str) -> Slice | None:
        return self.slice_rows.get((holder, account, period))

    def used(self, ids: Collection[str], since: str) -> set[str]:
        return {id for id in ids if id in self.holds or self._known_since(id, since)}

    def _known_since(self, entry_id: str, since: str) -> bool:
        row = self.entry_rows.get(entry_id)
        return row is not None and row.entry.period >= since

    # Reading beside transactions

    def entries(self, after: int, limit: int) -> list[Entry]:
        found: list[Entry] = []
        for seq in range(after + 1, self.last + 1):
            if seq in self.numbers and len(found) < limit:
                found.append(self.entry_rows[self.numbers[seq]].entry)
        return found

    def owners(self) -> Mapping[int, int]:
        return dict(self.commits)

    def incarnation(self) -> str:
        return self.header.incarnation

    def last_seq(self) -> int:
        return self.last

    def funded(self, since: str) -> list[tuple[str, str, Figures]]:
        return [
            (*key, replace(each))
            for key, each in self.sums.items()
            if each.granted > 0 and (key[1] >= since or each.granted - each.returned > each.spent)
        ]
