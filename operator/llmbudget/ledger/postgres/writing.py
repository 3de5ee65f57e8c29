"""Writing the rows, each statement in one place: one a table, however many rows it has.

What most transactions write goes as two: a statement costs the driver and the server more than the
rows of a call do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from datetime import datetime
from functools import cache
from itertools import chain
from typing import Final

from llmbudget.ledger.columns import (
    Row,
    account_row,
    action_row,
    entry_row,
    envelope_row,
    figures_row,
    hold_row,
    key_row,
    transfer_row,
)
from llmbudget.ledger.interface import Entry
from llmbudget.ledger.postgres.arrays import array
from llmbudget.ledger.postgres.connection import Connection
from llmbudget.ledger.postgres.rows import (
    ACTION,
    ENTRY,
    ENVELOPE,
    FIGURES,
    HOLD,
    HOLDER,
    SLICE,
    TRANSFER,
)
from llmbudget.ledger.records import Changes, Slice

Statement = tuple[str, Sequence[object]]
"""Its text, and values for it."""
Batch = tuple[str, Sequence[Row]]
"""A statement's text, and rows for it: each column goes as one array."""


def write(
    connection: Connection, changes: Changes, version: int, last: Sequence[Statement] = ()
) -> None:
    """Write what a transaction changed, and what is to be written last, together with the sums."""
    if changes.keys_before is not None:
        connection.execute("DELETE FROM idempotency WHERE period < %s", (changes.keys_before,))
    # First, since their keys stop a transaction that resolves what another owner resolved before,
    # or opens what is there.
    _execute(connection, _calls(changes))
    for statement in _rare(changes, version):
        _execute(connection, [statement])
    _execute(connection, [_sums(changes, version)], last)


def _execute(
    connection: Connection, batches: Iterable[Batch], last: Sequence[Statement] = ()
) -> None:
    """Run statements as one; those that lack rows are left out."""
    usual = [
        (statement, [array(column) for column in zip(*rows, strict=True)])
        for statement, rows in batches
        if rows
    ]
    if usual or last:
        texts, values = zip(*usual, *last, strict=True)
        connection.execute(together(texts), [*chain.from_iterable(values)])


@cache
def together(statements: tuple[str, ...]) -> str:
    """Make one statement of several that change different rows."""
    *first, last = statements
    if not first:
        return last
    named = ", ".join(f"part_{number} AS ({text})" for number, text in enumerate(first))
    return f"WITH {named} {last}"


def _calls(changes: Changes) -> Iterator[Batch]:
    yield ENTRIES, [entry_row(row, _same) for row in changes.entries.values()]
    yield OPENED, [hold_row(hold) for hold in changes.opened.values()]
    yield CLOSED, [(hold_id,) for hold_id in changes.closed]


def _sums(changes: Changes, version: int) -> Batch:
    rows = [
        (*figures_row(*key, figures), figures.granted, figures.returned, version)
        for key, figures in changes.figures.items()
    ]
    return SUMS, rows


def _rare(changes: Changes, version: int) -> Iterator[Batch]:
    """Yield what few transactions write, in the order in which it is to be written."""
    yield _ACCOUNTS, [account_row(account) for account in changes.accounts.values()]
    yield _ENVELOPES, [(*envelope_row(each, _same), version) for each in changes.envelopes.values()]
    yield _TRANSFERS, [transfer_row(transfer, _same) for transfer in changes.transfers.values()]
    yield _CORRECTED, [_corrected_row(row.entry) for row in changes.corrected.values()]
    yield "DELETE FROM entries WHERE seq = ANY(%s::int8[])", [(seq,) for seq in changes.forgotten]
    yield (
        "DELETE FROM idempotency WHERE (consumer, key) IN "
        "(SELECT * FROM unnest(%s::text[], %s::text[]))",
        changes.freed,
    )
    yield _KEYS, [key_row(key) for key in changes.keys.values()]
    yield _ACTIONS, [action_row(action, _same) for action in changes.actions.values()]
    yield _HOLDERS, [astuple(holder) for holder in changes.holders.values()]
    yield _SLICES, [_slice_row(each) for each in changes.slices.values()]
    yield _CURSORS, list(changes.cursors.items())


def _same(at: datetime) -> datetime:
    return at


def _unnest(types: str) -> str:
    return f"SELECT * FROM unnest({', '.join(f'%s::{name}[]' for name in types.split())})"


# A path is one text here: an array of arrays must be a rectangle.
OPENED: Final = (
    f"INSERT INTO holds ({HOLD}) SELECT id, string_to_array(path, ' '), period, amount, "
    "provider, model, agent, task_id, epoch, consumer, key, envelope FROM ("
    + _unnest("text text text int8 text text text text int8 text text text")
    + ") AS t(id, path, period, amount, provider, model, agent, task_id, epoch, consumer, key, "
    "envelope)"
)
CLOSED: Final = "DELETE FROM holds WHERE id = ANY(%s::text[])"
ENTRIES: Final = (
    f"INSERT INTO entries ({ENTRY}) SELECT seq, id, ts, string_to_array(path, ' '), period, "
    "provider, model, tokens_in, tokens_out, cost, held, task_id, agent, status, outcome, "
    "envelope FROM ("
    + _unnest(
        "int8 text timestamptz text text text text int8 int8 int8 int8 text text text text text"
    )
    + ") AS t(seq, id, ts, path, period, provider, model, tokens_in, tokens_out, cost, held, "
    "task_id, agent, status, outcome, envelope)"
)
_ACCOUNTS: Final = (
    "INSERT INTO accounts (name, parent, cap, blocks, thresholds, steps, approved_period, active, "
    "revision, rollover, borrows, lends, top_ups, loan) "
    + _unnest("text text int8 bool text int4 text bool int8 int8 int8 int8 text text")
    + " ON CONFLICT (name) DO UPDATE SET parent = excluded.parent, cap = excluded.cap, "
    "blocks = excluded.blocks, thresholds = excluded.thresholds, steps = excluded.steps, "
    "approved_period = excluded.approved_period, active = excluded.active, "
    "revision = excluded.revision, rollover = excluded.rollover, borrows = excluded.borrows, "
    "lends = excluded.lends, top_ups = excluded.top_ups, loan = excluded.loan"
)
SUMS: Final = (
    f"INSERT INTO account_periods ({FIGURES}, version) "
    + _unnest("text text int8 int8 int8 int8 int8 bool int8 int8 int8 int8 int8 int8")
    + " ON CONFLICT (period, account) DO UPDATE SET spent = excluded.spent, "
    "overage = excluded.overage, debit = excluded.debit, held = excluded.held, "
    "carried = excluded.carried, closed = excluded.closed, closing_cap = excluded.closing_cap, "
    "lent = excluded.lent, rolled = excluded.rolled, granted = excluded.granted, "
    "returned = excluded.returned, version = excluded.version"
)
_ENVELOPES: Final = (
    f"INSERT INTO envelopes ({ENVELOPE}, version) SELECT id, account, string_to_array(path, ' '), "
    "period, cap, consumer, string_to_array(users, ' '), task_id, opened, expires, closed, spent, "
    "held, version FROM ("
    + _unnest(
        "text text text text int8 text text text timestamptz timestamptz timestamptz int8 int8 int8"
    )
    + ") AS t(id, account, path, period, cap, consumer, users, task_id, opened, expires, closed, "
    "spent, held, version) ON CONFLICT (id) DO UPDATE SET closed = excluded.closed, "
    "spent = excluded.spent, held = excluded.held, version = excluded.version"
)
_TRANSFERS: Final = f"INSERT INTO transfers ({TRANSFER}) " + _unnest(
    "text timestamptz text text text int8 text text text timestamptz"
)
_CORRECTED: Final = (
    "UPDATE entries SET tokens_in = t.tokens_in, tokens_out = t.tokens_out, cost = t.cost, "
    "status = t.status, outcome = t.outcome, seq = t.seq, held = t.held FROM ("
    + _unnest("text text int8 int8 int8 text text int8 int8")
    + ") AS t(period, id, tokens_in, tokens_out, cost, status, outcome, seq, held) "
    "WHERE entries.period = t.period AND entries.id = t.id"
)
_KEYS: Final = "INSERT INTO idempotency (consumer, key, entry, fingerprint, period) " + _unnest(
    "text text text text text"
)
_ACTIONS: Final = (
    f"INSERT INTO actions ({ACTION}) "
    + _unnest("text text text int4 text int8 int8 timestamptz bool")
    + " ON CONFLICT (id) DO UPDATE SET acknowledged = excluded.acknowledged"
)
_CURSORS: Final = (
    "INSERT INTO cursors (name, seq) "
    + _unnest("text int8")
    + " ON CONFLICT (name) DO UPDATE SET seq = excluded.seq"
)


_HOLDERS: Final = (
    f"INSERT INTO holders ({HOLDER}) "
    + _unnest("text text int8 int8 bool bool bool text")
    + " ON CONFLICT (id) DO UPDATE SET region = excluded.region, "
    "shipped_seq = excluded.shipped_seq, beats = excluded.beats, lost = excluded.lost, "
    "replaced = excluded.replaced, went_back = excluded.went_back, "
    "shipped_id = excluded.shipped_id"
)
_SLICES: Final = (
    f"INSERT INTO slices ({SLICE}) SELECT holder, account, period, string_to_array(path, ' '), "
    "granted, shipped, returned, unknown FROM ("
    + _unnest("text text text text int8 int8 int8 int8")
    + ") AS t(holder, account, period, path, granted, shipped, returned, unknown) "
    "ON CONFLICT (holder, account, period) DO UPDATE SET path = excluded.path, "
    "granted = excluded.granted, shipped = excluded.shipped, returned = excluded.returned, "
    "unknown = excluded.unknown"
)


def _corrected_row(entry: Entry) -> Row:
    return (
        entry.period,
        entry.id,
        entry.tokens_in,
        entry.tokens_out,
        entry.cost,
        None if entry.status is None else str(entry.status),
        entry.outcome.value,
        entry.seq,
        entry.held,
    )


def _slice_row(each: Slice) -> Row:
    return (
        each.holder,
        each.account,
        each.period,
        " ".join(each.path),
        each.granted,
        each.shipped,
        each.returned,
        each.unknown,
    )
