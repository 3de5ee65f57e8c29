"""Reading the rows, each statement in one place."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.contract.config import Threshold
from llmbudget.ledger.columns import Row
from llmbudget.ledger.interface import ActionRow, Entry, Envelope, Outcome
from llmbudget.ledger.postgres.arrays import array
from llmbudget.ledger.postgres.connection import Connection
from llmbudget.ledger.records import (
    Account,
    EntryRow,
    Figures,
    Holder,
    KeyRow,
    OpenHold,
    Slice,
    Transfer,
    TransferKind,
    loan_of,
    top_ups_of,
)

FIGURES: Final = (
    "account, period, spent, overage, debit, held, carried, closed, closing_cap, lent, rolled, "
    "granted, returned"
)
HOLD: Final = (
    "id, path, period, amount, provider, model, agent, task_id, epoch, consumer, "
    "idempotency_key, envelope"
)
ENTRY: Final = (
    "seq, id, ts, path, period, provider, model, tokens_in, tokens_out, cost, held, task_id, "
    "agent, status, outcome, envelope"
)
ENVELOPE: Final = (
    "id, account, path, period, cap, consumer, users, task_id, opened, expires, closed, spent, held"
)
TRANSFER: Final = "id, ts, kind, account, period, amount, source, granted_by, reason, expires"
ACTION: Final = "id, account, period, percentage, action, spent, cap, fired_at, acknowledged"
HOLDER: Final = "id, region, shipped_seq, beats, lost, replaced, went_back, shipped_id"
SLICE: Final = "holder, account, period, path, granted, shipped, returned, unknown"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was read beforehand, for a whole group of operations."""

    absent: frozenset[str] = frozenset()
    """Ids of no entry."""
    keys: Mapping[tuple[str, str], KeyRow | None] = field(default_factory=dict)
    holders: Sequence[Holder] | None = None
    slices: Mapping[str, Sequence[Slice]] = field(default_factory=dict)
    """By holder."""


class Rows:
    """What a book reads from the database, by a connection."""

    def __init__(self, connection: Connection, fetched: Fetched | None = None) -> None:
        self._connection = connection
        self._fetched = fetched or Fetched()

    def _one(self, statement: str, *values: object) -> Row | None:
        return self._connection.execute(statement, values).fetchone()

    def _all(self, statement: str, *values: object, **named: object) -> list[Row]:
        return self._connection.execute(statement, named or values).fetchall()

    def accounts(self) -> list[Account]:
        """Read all accounts, left-out ones among them."""
        return [
            Account(
                name=row[0],
                parent=row[1],
                cap=row[2],
                blocks=row[3],
                thresholds=tuple(
                    Threshold(percentage=percentage, action=action)
                    for percentage, action in json.loads(row[4])
                ),
                steps=row[5],
                approved_period=row[6],
                active=row[7],
                revision=row[8],
                rollover=row[9],
                borrows=row[10],
                lends=row[11],
                top_ups=top_ups_of(row[12]),
                loan=loan_of(row[13]),
            )
            for row in self._all(
                "SELECT name, parent, cap, blocks, thresholds, steps, approved_period, active, "
                "revision, rollover, borrows, lends, top_ups, loan FROM accounts"
            )
        ]

    def holds_of(self, epochs: Sequence[int]) -> list[OpenHold]:
        """Read the open holds of some owners."""
        return _holds(self._all(f"SELECT {HOLD} FROM holds WHERE epoch = ANY(%s)", list(epochs)))

    def holds(self, ids: Sequence[str]) -> list[OpenHold]:
        """Read open holds by their ids."""
        return _holds(self._all(f"SELECT {HOLD} FROM holds WHERE id = ANY(%s)", list(ids)))

    def ownerless(self) -> list[OpenHold]:
        """Read the open holds whose owner is gone."""
        return _holds(
            self._all(f"SELECT {HOLD} FROM holds WHERE epoch NOT IN (SELECT epoch FROM owners)")
        )

    def owners(self) -> dict[int, int]:
        """Read how many commits each owner has made, by epoch."""
        return dict(self._all("SELECT epoch, commits FROM owners"))

    def figures_in(self, period: str | None) -> list[tuple[str, str, Figures]]:
        """Read all accounts' sums in a period."""
        return figures_of(
            self._all(f"SELECT {FIGURES} FROM account_periods WHERE period = %s", period)
        )

    def figures(self, account: str, period: str) -> Figures | None:
        """Find an account's sums in a period."""
        row = self._one(
            f"SELECT {FIGURES} FROM account_periods WHERE period = %s AND account = %s",
            period,
            account,
        )
        return None if row is None else Figures(*row[2:])

    def accounts_in(self, period: str) -> list[str]:
        """List the accounts that have sums in a period."""
        rows = self._all("SELECT account FROM account_periods WHERE period = %s", period)
        return [row[0] for row in rows]

    def entry(self, entry_id: str) -> EntryRow | None:
        """Find an entry by its id."""
        if entry_id in self._fetched.absent:
            return None
        row = self._one(f"SELECT {ENTRY} FROM entries WHERE id = %s", entry_id)
        return None if row is None else _entry(row)

    def entries(self, after: int, limit: int) -> list[Entry]:
        """Read entries in the order of their `seq`."""
        rows = self._all(
            f"SELECT {ENTRY} FROM entries WHERE seq > %s ORDER BY seq LIMIT %s",
            after,
            limit,
        )
        return [_entry(row).entry for row in rows]

    def older(self, period: str, limit: int) -> list[int]:
        """Read the `seq` of entries of earlier periods, but never that of the last one."""
        rows = self._all(
            "SELECT seq FROM entries WHERE period < %s AND seq < (SELECT last_seq FROM ledger) "
            "LIMIT %s",
            period,
            limit,
        )
        return [row[0] for row in rows]

    def key(self, consumer: str, key: str) -> KeyRow | None:
        """Find a used idempotency key."""
        if (consumer, key) in self._fetched.keys:
            return self._fetched.keys[consumer, key]
        found = self._all(KEYS, array([consumer]), array([key]))
        return KeyRow(*found[0]) if found else None

    def envelope(self, envelope_id: str) -> Envelope | None:
        """Find an envelope, open or closed."""
        row = self._one(f"SELECT {ENVELOPE} FROM envelopes WHERE id = %s", envelope_id)
        return None if row is None else _envelope(row)

    def open_envelopes(self) -> list[Envelope]:
        """Read the open envelopes."""
        rows = self._all(f"SELECT {ENVELOPE} FROM envelopes WHERE closed IS NULL")
        return [_envelope(row) for row in rows]

    def envelopes_since(self, version: int) -> list[Envelope]:
        """Read the envelopes that were changed after a version."""
        rows = self._all(f"SELECT {ENVELOPE} FROM envelopes WHERE version > %s", version)
        return [_envelope(row) for row in rows]

    def transfer(self, transfer_id: str) -> Transfer | None:
        """Find a transfer."""
        row = self._one(f"SELECT {TRANSFER} FROM transfers WHERE id = %s", transfer_id)
        return None if row is None else _transfer(row)

    def action(self, action_id: str) -> ActionRow | None:
        """Find a crossed threshold."""
        row = self._one(f"SELECT {ACTION} FROM actions WHERE id = %s", action_id)
        return None if row is None else _action(row)

    def actions(self, period: str | None) -> list[ActionRow]:
        """Read a period's actions and all that are not acknowledged."""
        rows = self._all(
            f"SELECT {ACTION} FROM actions WHERE period = %s OR NOT acknowledged "
            "ORDER BY fired_at, percentage",
            period,
        )
        return [_action(row) for row in rows]

    def holders(self) -> Sequence[Holder]:
        """Read all holders of slices."""
        if self._fetched.holders is not None:
            return self._fetched.holders
        return holders_of(self._all(HOLDERS))

    def slices(self, holder: str | None) -> Sequence[Slice]:
        """Read the slices of a holder that are unfinished or of the current period; None: of all
        holders."""
        if holder is not None and holder in self._fetched.slices:
            return self._fetched.slices[holder]
        return slices_of(self._all(SLICES, holder=holder))

    def slice(self, holder: str, account: str, period: str) -> Slice | None:
        """Find a slice."""
        key = (account, period)
        for found in self._fetched.slices.get(holder, ()):
            if (found.account, found.period) == key:
                return found
        rows = self._all(
            f"SELECT {SLICE} FROM slices WHERE (holder, account, period) = (%s, %s, %s)",
            *(holder, account, period),
        )
        return slices_of(rows)[0] if rows else None

    def used(self, ids: Collection[str], since: str) -> set[str]:
        """List those ids that holds have, or entries of the periods from one on."""
        return {row[0] for row in self._all(KNOWN, ids=array(ids), since=since)}

    def incarnation(self) -> str:
        """Read the id of these tables: tables that are made anew have another."""
        row = self._one("SELECT incarnation FROM ledger")
        assert row is not None
        return str(row[0])

    def last_seq(self) -> int:
        """Read the number of the newest entry."""
        row = self._one("SELECT last_seq FROM ledger")
        assert row is not None
        return int(row[0])

    def funded(self, since: str) -> list[tuple[str, str, Figures]]:
        """Read the sums of accounts that were given slices: those that are not used up, and all of
        the periods from one on."""
        return figures_of(
            self._all(
                f"SELECT {FIGURES} FROM account_periods WHERE granted > 0 "
                "AND (period >= %s OR granted - returned > spent)",
                since,
            )
        )

    def cursor(self, name: str) -> int:
        """Read a cursor; 0 where it was never stored."""
        row = self._one("SELECT seq FROM cursors WHERE name = %s", name)
        return 0 if row is None else int(row[0])


NEWS: Final = (
    "SELECT clock_timestamp(), owners.commits, changed.* FROM (VALUES (1)) AS always "
    "LEFT JOIN owners ON epoch = %(epoch)s "
    f"LEFT JOIN (SELECT {FIGURES} FROM account_periods WHERE period = %(period)s "
    "AND version > %(seen)s AND (SELECT version FROM ledger) > %(seen)s) AS changed ON true"
)
"""The time, an owner's commits, and what others changed in a period since a version: at least one
row. Where nobody committed anything, the sums are not even looked at."""
KEYS: Final = (
    "SELECT consumer, key, entry, fingerprint, period FROM idempotency "
    "WHERE (consumer, key) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
)
KNOWN: Final = (
    "SELECT id FROM holds WHERE id = ANY(%(ids)s::text[]) UNION ALL "
    "SELECT id FROM entries WHERE id = ANY(%(ids)s::text[]) AND period >= %(since)s"
)
"""Which ids are in use, by holds or by entries of the last months: an id of an earlier one is as
good as new, and looking for it would touch the indexes of years."""


HOLDERS: Final = f"SELECT {HOLDER} FROM holders"
SLICES: Final = (
    f"SELECT {SLICE} FROM slices WHERE (holder = %(holder)s OR %(holder)s::text IS NULL) "
    "AND (granted - shipped - returned > 0 OR period >= (SELECT period FROM ledger))"
)


def holders_of(rows: Iterable[Row]) -> list[Holder]:
    """Make holders of rows."""
    return [Holder(*row) for row in rows]


def slices_of(rows: Iterable[Row]) -> list[Slice]:
    """Make slices of rows."""
    return [Slice(row[0], row[1], row[2], tuple(row[3]), *row[4:]) for row in rows]


def figures_of(rows: Iterable[Row]) -> list[tuple[str, str, Figures]]:
    """Make sums of rows."""
    return [(row[0], row[1], Figures(*row[2:])) for row in rows]


def _holds(rows: Iterable[Row]) -> list[OpenHold]:
    return [OpenHold(row[0], tuple(row[1]), *row[2:]) for row in rows]


def _entry(row: Row) -> EntryRow:
    path = tuple(row[3])
    entry = Entry(
        seq=row[0],
        id=row[1],
        ts=row[2],
        account=path[0],
        period=row[4],
        provider=row[5],
        model=row[6],
        tokens_in=row[7],
        tokens_out=row[8],
        cost=Nano(row[9]),
        held=Nano(row[10]),
        task_id=row[11],
        agent=row[12],
        status=row[13],
        outcome=Outcome(row[14]),
        envelope=row[15],
    )
    return EntryRow(entry, path)


def _envelope(row: Row) -> Envelope:
    id, account, path, period, cap, consumer, users, *others = row
    return Envelope(id, account, tuple(path), period, cap, consumer, tuple(users), *others)


def _transfer(row: Row) -> Transfer:
    return Transfer(row[0], row[1], TransferKind(row[2]), *row[3:])


def _action(row: Row) -> ActionRow:
    return ActionRow(
        id=row[0],
        account=row[1],
        period=row[2],
        percentage=row[3],
        action=Action(row[4]),
        spent=Nano(row[5]),
        cap=Nano(row[6]),
        fired_at=row[7],
        acknowledged=row[8],
    )
