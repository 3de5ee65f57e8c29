"""What a record's row has, in the order of its table's columns, which both engines share.

Paths are one text, and choices their values. Where an engine stores instants in its own way, `at`
converts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from llmbudget.ledger.interface import ActionRow, Envelope
from llmbudget.ledger.records import (
    Account,
    EntryRow,
    Figures,
    KeyRow,
    OpenHold,
    Transfer,
    loan_text,
    top_ups_text,
)

Row = tuple[Any, ...]
At = Callable[[datetime], object]


def account_row(account: Account) -> Row:
    """Write what is known of a budget."""
    thresholds = [[found.percentage, found.action] for found in account.thresholds]
    return (
        account.name,
        account.parent,
        account.cap,
        account.blocks,
        json.dumps(thresholds),
        account.steps,
        account.approved_period,
        account.active,
        account.revision,
        account.rollover,
        account.borrows,
        account.lends,
        top_ups_text(account.top_ups),
        loan_text(account.loan),
    )


def figures_row(account: str, period: str, figures: Figures) -> Row:
    """Write an account's sums, but those of slices."""
    return (
        account,
        period,
        figures.spent,
        figures.overage,
        figures.debit,
        figures.held,
        figures.carried,
        figures.closed,
        figures.closing_cap,
        figures.lent,
        figures.rolled,
    )


def hold_row(hold: OpenHold) -> Row:
    """Write a hold."""
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


def entry_row(row: EntryRow, at: At) -> Row:
    """Write an entry."""
    entry = row.entry
    return (
        entry.seq,
        entry.id,
        at(entry.ts),
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
        None if entry.status is None else str(entry.status),
        entry.outcome.value,
        entry.envelope,
    )


def key_row(key: KeyRow) -> Row:
    """Write an idempotency key."""
    return (key.consumer, key.key, key.entry, key.fingerprint, key.period)


def envelope_row(envelope: Envelope, at: At) -> Row:
    """Write an envelope."""
    return (
        envelope.id,
        envelope.account,
        " ".join(envelope.path),
        envelope.period,
        envelope.cap,
        envelope.consumer,
        " ".join(envelope.users),
        envelope.task_id,
        at(envelope.opened),
        at(envelope.expires),
        None if envelope.closed is None else at(envelope.closed),
        envelope.spent,
        envelope.held,
    )


def transfer_row(transfer: Transfer, at: At) -> Row:
    """Write a transfer."""
    return (
        transfer.id,
        at(transfer.ts),
        transfer.kind.value,
        transfer.account,
        transfer.period,
        transfer.amount,
        transfer.source,
        transfer.by,
        transfer.reason,
        None if transfer.expires is None else at(transfer.expires),
    )


def action_row(action: ActionRow, at: At) -> Row:
    """Write an action."""
    return (
        action.id,
        action.account,
        action.period,
        action.percentage,
        action.action.value,
        action.spent,
        action.cap,
        at(action.fired_at),
        action.acknowledged,
    )
