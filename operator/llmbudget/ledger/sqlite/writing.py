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
from llmbudget.ledger.records import Changes, Header
from llmbudget.ledger.sqlite.rows import to_microseconds

SUMS: Final = "INSERT OR REPLACE INTO account_periods VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
OPENED: Final = "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
CLOSED: Final = "DELETE FROM holds WHERE id = ?"
ENTRIES: Final = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


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
        if rows:
            connection.executemany(statement, rows)


def _batches(changes: Changes) -> Iterator[tuple[str, Sequence[Row]]]:
    yield (
        "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [account_row(account) for account in changes.accounts.values()],
    )
    yield (
        SUMS,
        [figures_row(*key, figures) for key, figures in changes.figures.items()],
    )
    yield (
        OPENED,
        [hold_row(hold) for hold in changes.opened.values()],
    )
    yield CLOSED, [(hold_id,) for hold_id in changes.closed]
    yield (
        ENTRIES,
        [entry_row(row, to_microseconds) for row in changes.entries.values()],
    )
    yield (
        "UPDATE entries SET tokens_in = ?, tokens_out = ?, cost = ?, status = ?, outcome = ? "
        "WHERE seq = ?",
        [
            (found.tokens_in, found.tokens_out, found.cost, found.status, found.outcome, found.seq)
            for found in (row.entry for row in changes.corrected.values())
        ],
    )
    yield "DELETE FROM entries WHERE seq = ?", [(seq,) for seq in changes.forgotten]
    yield "DELETE FROM idempotency WHERE consumer = ? AND key = ?", changes.freed
    yield (
        "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)",
        [key_row(key) for key in changes.keys.values()],
    )
    yield (
        "INSERT OR REPLACE INTO envelopes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [envelope_row(envelope, to_microseconds) for envelope in changes.envelopes.values()],
    )
    yield (
        "INSERT INTO transfers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [transfer_row(transfer, to_microseconds) for transfer in changes.transfers.values()],
    )
    yield (
        "INSERT INTO actions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET acknowledged = excluded.acknowledged",
        [action_row(action, to_microseconds) for action in changes.actions.values()],
    )
    yield "INSERT OR REPLACE INTO cursors VALUES (?, ?)", list(changes.cursors.items())
