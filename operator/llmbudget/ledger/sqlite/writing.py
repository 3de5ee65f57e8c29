"""Writing the rows, each statement in one place: one a table, however many rows it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import apsw

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
from llmbudget.ledger.records import Changes, Header
from llmbudget.ledger.sqlite.rows import to_microseconds

ACCOUNTS: Final = (
    "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
SUMS: Final = "INSERT OR REPLACE INTO account_periods VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
OPENED: Final = "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
CLOSED: Final = "DELETE FROM holds WHERE id = ?"
ENTRIES: Final = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
CORRECTED: Final = (
    "UPDATE entries SET tokens_in = ?, tokens_out = ?, cost = ?, status = ?, outcome = ? "
    "WHERE seq = ?"
)
KEYS: Final = "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)"
ENVELOPES: Final = "INSERT OR REPLACE INTO envelopes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
TRANSFERS: Final = "INSERT INTO transfers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ACTIONS: Final = (
    "INSERT INTO actions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (id) DO UPDATE SET acknowledged = excluded.acknowledged"
)


def write(connection: apsw.Connection, header: Header, changes: Changes) -> None:
    """Write what a transaction changed: each table once, however many operations it ran."""
    if changes.header:
        connection.execute(
            "UPDATE ledger SET epoch = ?, generation = ?, period = ?, time_zone = ?, "
            "next_time_zone = ?",
            (
                header.epoch,
                header.generation,
                header.period,
                header.time_zone,
                header.next_time_zone,
            ),
        )
    if changes.keys_before is not None:
        connection.execute("DELETE FROM idempotency WHERE period < ?", (changes.keys_before,))
    for statement, rows in _batches(changes):
        connection.executemany(statement, rows)


def _batches(changes: Changes) -> Iterator[tuple[str, Sequence[Row]]]:
    """List the tables that change: of most calls two or three."""
    if changes.accounts:
        yield ACCOUNTS, [account_row(account) for account in changes.accounts.values()]
    if changes.figures:
        yield SUMS, [figures_row(*key, figures) for key, figures in changes.figures.items()]
    if changes.opened:
        yield OPENED, [hold_row(hold) for hold in changes.opened.values()]
    if changes.closed:
        yield CLOSED, [(hold_id,) for hold_id in changes.closed]
    if changes.entries:
        yield ENTRIES, [entry_row(row, to_microseconds) for row in changes.entries.values()]
    if changes.corrected:
        yield CORRECTED, [_corrected_row(row.entry) for row in changes.corrected.values()]
    if changes.forgotten:
        yield "DELETE FROM entries WHERE seq = ?", [(seq,) for seq in changes.forgotten]
    if changes.freed:
        yield "DELETE FROM idempotency WHERE consumer = ? AND key = ?", changes.freed
    if changes.keys:
        yield KEYS, [key_row(key) for key in changes.keys.values()]
    if changes.envelopes:
        yield ENVELOPES, [envelope_row(e, to_microseconds) for e in changes.envelopes.values()]
    if changes.transfers:
        yield TRANSFERS, [transfer_row(t, to_microseconds) for t in changes.transfers.values()]
    if changes.actions:
        yield ACTIONS, [action_row(action, to_microseconds) for action in changes.actions.values()]
    if changes.cursors:
        yield "INSERT OR REPLACE INTO cursors VALUES (?, ?)", list(changes.cursors.items())


def _corrected_row(found: Entry) -> Row:
    return (found.tokens_in, found.tokens_out, found.cost, found.status, found.outcome, found.seq)
