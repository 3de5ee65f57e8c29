"""Writing the rows, each statement in one place: one a table, however many rows it has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import apsw

from llmbudget.ledger.interface import ActionRow, Envelope
from llmbudget.ledger.records import (
    Account,
    Changes,
    EntryRow,
    Figures,
    Header,
    OpenHold,
    Transfer,
    loan_text,
    top_ups_text,
)
from llmbudget.ledger.sqlite.rows import Row, to_microseconds


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
        [_account_row(account) for account in changes.accounts.values()],
    )
    yield (
        "INSERT OR REPLACE INTO account_periods VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_figures_row(*key, figures) for key, figures in changes.figures.items()],
    )
    yield (
        "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_hold_row(hold) for hold in changes.opened.values()],
    )
    yield "DELETE FROM holds WHERE id = ?", [(hold_id,) for hold_id in changes.closed]
    yield (
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_entry_row(row) for row in changes.entries.values()],
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
        [
            (key.consumer, key.key, key.entry, key.fingerprint, key.period)
            for key in changes.keys.values()
        ],
    )
    yield (
        "INSERT OR REPLACE INTO envelopes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_envelope_row(envelope) for envelope in changes.envelopes.values()],
    )
    yield (
        "INSERT INTO transfers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_transfer_row(transfer) for transfer in changes.transfers.values()],
    )
    yield (
        "INSERT INTO actions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET acknowledged = excluded.acknowledged",
        [_action_row(action) for action in changes.actions.values()],
    )
    yield "INSERT OR REPLACE INTO cursors VALUES (?, ?)", list(changes.cursors.items())


def _account_row(account: Account) -> Row:
    thresholds = [[found.percentage, found.action] for found in account.thresholds]
    return (
        account.name,
        account.parent,
        account.cap,
        int(account.blocks),
        json.dumps(thresholds),
        account.steps,
        account.approved_period,
        int(account.active),
        account.revision,
        account.rollover,
        account.borrows,
        account.lends,
        top_ups_text(account.top_ups),
        loan_text(account.loan),
    )


def _figures_row(account: str, period: str, figures: Figures) -> Row:
    return (
        account,
        period,
        figures.spent,
        figures.overage,
        figures.debit,
        figures.held,
        figures.carried,
        int(figures.closed),
        figures.closing_cap,
        figures.lent,
        figures.rolled,
    )


def _hold_row(hold: OpenHold) -> Row:
    return (
        hold.id,
        " ".join(hold.path),
        hold.period,
        hold.amount,
        hold.provider,
        hold.model,
        hold.agent,
        hold.task_id,
        hold.epoch,
        hold.consumer,
        hold.idempotency_key,
        hold.envelope,
    )


def _entry_row(row: EntryRow) -> Row:
    entry = row.entry
    return (
        entry.seq,
        entry.id,
        to_microseconds(entry.ts),
        " ".join(row.path),
        entry.period,
        entry.provider,
        entry.model,
        entry.tokens_in,
        entry.tokens_out,
        entry.cost,
        entry.held,
        entry.task_id,
        entry.agent,
        entry.status,
        entry.outcome,
        entry.envelope,
    )


def _action_row(action: ActionRow) -> Row:
    return (
        action.id,
        action.account,
        action.period,
        action.percentage,
        action.action,
        action.spent,
        action.cap,
        to_microseconds(action.fired_at),
        int(action.acknowledged),
    )


def _envelope_row(envelope: Envelope) -> Row:
    closed = envelope.closed
    return (
        envelope.id,
        envelope.account,
        " ".join(envelope.path),
        envelope.period,
        envelope.cap,
        envelope.consumer,
        " ".join(envelope.users),
        envelope.task_id,
        to_microseconds(envelope.opened),
        to_microseconds(envelope.expires),
        None if closed is None else to_microseconds(closed),
        envelope.spent,
        envelope.held,
    )


def _transfer_row(transfer: Transfer) -> Row:
    return (
        transfer.id,
        to_microseconds(transfer.ts),
        transfer.kind,
        transfer.account,
        transfer.period,
        transfer.amount,
        transfer.source,
        transfer.by,
        transfer.reason,
        None if transfer.expires is None else to_microseconds(transfer.expires),
    )
