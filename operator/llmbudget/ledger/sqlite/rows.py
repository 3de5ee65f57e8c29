"""Reading the rows, each statement in one place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import apsw

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.contract.config import Threshold
from llmbudget.ledger.columns import Row
from llmbudget.ledger.interface import ActionRow, Entry, Envelope, Outcome
from llmbudget.ledger.records import (
    Account,
    Changes,
    EntryRow,
    Figures,
    Header,
    KeyRow,
    OpenHold,
    Transfer,
    TransferKind,
    loan_of,
    top_ups_of,
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Rows:
    """What a book reads from the file, by a connection."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def _one(self, statement: str, *values: object) -> Row | None:
        found: Row | None = self._connection.execute(statement, values).fetchone()
        return found

    def _all(self, statement: str, *values: object) -> Iterator[Row]:
        return iter(self._connection.execute(statement, values))

    def header(self) -> Header:
        """Read the ledger's own row."""
        row = self._one("SELECT epoch, generation, period, time_zone, next_time_zone FROM ledger")
        assert row is not None
        return Header(row[0], row[1], row[2], row[3] or "UTC", row[4] or "UTC")

    def accounts(self) -> list[Account]:
        """Read all accounts, left-out ones among them."""
        return [
            Account(
                name=row[0],
                parent=row[1],
                cap=row[2],
                blocks=bool(row[3]),
                thresholds=tuple(
                    Threshold(percentage=percentage, action=action)
                    for percentage, action in json.loads(row[4])
                ),
                steps=row[5],
                approved_period=row[6],
                active=bool(row[7]),
                revision=row[8],
                rollover=row[9],
                borrows=row[10],
                lends=row[11],
                top_ups=top_ups_of(row[12]),
                loan=loan_of(row[13]),
            )
            for row in self._all("SELECT * FROM accounts")
        ]

    def holds(self) -> list[OpenHold]:
        """Read the open holds."""
        return [
            OpenHold(row[0], tuple(row[1].split(" ")), *row[2:])
            for row in self._all("SELECT * FROM holds")
        ]

    def last_seq(self) -> int:
        """Tell the highest `seq` of an entry; 0: there is none."""
        row = self._one("SELECT coalesce(max(seq), 0) FROM entries")
        assert row is not None
        return int(row[0])

    def figures(self, account: str, period: str) -> Figures | None:
        """Find an account's sums in a period."""
        row = self._one(
            "SELECT * FROM account_periods WHERE account = ? AND period = ?",
            account,
            period,
        )
        return None if row is None else _figures(row)[2]

    def accounts_in(self, period: str) -> list[str]:
        """List the accounts that have sums in a period."""
        rows = self._all("SELECT account FROM account_periods WHERE period = ?", period)
        return [row[0] for row in rows]

    def entry(self, entry_id: str) -> EntryRow | None:
        """Find an entry by its id."""
        row = self._one("SELECT * FROM entries WHERE id = ?", entry_id)
        return None if row is None else _entry(row)

    def entries(self, after: int, limit: int) -> list[Entry]:
        """Read entries in the order of their `seq`."""
        return [row.entry for row in self.entry_rows(after, limit)]

    def entry_rows(self, after: int, limit: int) -> list[EntryRow]:
        """Read entries in the order of their `seq`, with their paths."""
        rows = self._all("SELECT * FROM entries WHERE seq > ? ORDER BY seq LIMIT ?", after, limit)
        return [_entry(row) for row in rows]

    def older(self, period: str, limit: int) -> list[int]:
        """Read the `seq` of entries of earlier periods. The last one stays: numbers go on from
        it."""
        rows = self._all(
            "SELECT seq FROM entries WHERE period < ? AND seq < (SELECT max(seq) FROM entries) "
            "LIMIT ?",
            period,
            limit,
        )
        return [row[0] for row in rows]

    def key(self, consumer: str, key: str) -> KeyRow | None:
        """Find a used idempotency key."""
        row = self._one("SELECT * FROM idempotency WHERE consumer = ? AND key = ?", consumer, key)
        return None if row is None else KeyRow(*row)

    def envelope(self, envelope_id: str) -> Envelope | None:
        """Find an envelope, open or closed."""
        row = self._one("SELECT * FROM envelopes WHERE id = ?", envelope_id)
        return None if row is None else _envelope(row)

    def open_envelopes(self) -> list[Envelope]:
        """Read the open envelopes."""
        return [_envelope(row) for row in self._all("SELECT * FROM envelopes WHERE closed IS NULL")]

    def transfer(self, transfer_id: str) -> Transfer | None:
        """Find a transfer."""
        row = self._one("SELECT * FROM transfers WHERE id = ?", transfer_id)
        return None if row is None else _transfer(row)

    def action(self, action_id: str) -> ActionRow | None:
        """Find a crossed threshold."""
        row = self._one("SELECT * FROM actions WHERE id = ?", action_id)
        return None if row is None else _action(row)

    def actions(self, period: str | None) -> list[ActionRow]:
        """Read a period's actions and all that are not acknowledged."""
        rows = self._all(
            "SELECT * FROM actions WHERE period = ? OR NOT acknowledged "
            "ORDER BY fired_at, percentage",
            period,
        )
        return [_action(row) for row in rows]

    def cursor(self, name: str) -> int:
        """Read a cursor; 0 where it was never stored."""
        row = self._one("SELECT seq FROM cursors WHERE name = ?", name)
        return 0 if row is None else int(row[0])

    def all_but_entries(self) -> Changes:
        """Read all rows of all months, but the entries and the open holds, as if one transaction
        had written them."""
        figures = [_figures(row) for row in self._all("SELECT * FROM account_periods")]
        keys = [KeyRow(*row) for row in self._all("SELECT * FROM idempotency")]
        envelopes = [_envelope(row) for row in self._all("SELECT * FROM envelopes")]
        transfers = [_transfer(row) for row in self._all("SELECT * FROM transfers")]
        actions = [_action(row) for row in self._all("SELECT * FROM actions")]
        return Changes(
            accounts={account.name: account for account in self.accounts()},
            figures={(account, period): found for account, period, found in figures},
            keys={(key.consumer, key.key): key for key in keys},
            envelopes={envelope.id: envelope for envelope in envelopes},
            transfers={transfer.id: transfer for transfer in transfers},
            actions={action.id: action for action in actions},
            cursors=dict(self._all("SELECT name, seq FROM cursors")),
        )


def to_microseconds(instant: datetime) -> int:
    """Convert an instant to whole microseconds since 1970, as the file holds it."""
    return (instant - _EPOCH) // _MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """Convert what the file holds to an instant in UTC."""
    return _EPOCH + microseconds * _MICROSECOND


def _figures(row: Row) -> tuple[str, str, Figures]:
    account, period, spent, overage, debit, held, carried, closed, *others = row
    figures = Figures(spent, overage, debit, held, carried, bool(closed), *others)
    return account, period, figures


def _entry(row: Row) -> EntryRow:
    path = tuple(row[3].split(" "))
    entry = Entry(
        seq=row[0],
        id=row[1],
        ts=from_microseconds(row[2]),
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


def _action(row: Row) -> ActionRow:
    return ActionRow(
        id=row[0],
        account=row[1],
        period=row[2],
        percentage=row[3],
        action=Action(row[4]),
        spent=Nano(row[5]),
        cap=Nano(row[6]),
        fired_at=from_microseconds(row[7]),
        acknowledged=bool(row[8]),
    )


def _envelope(row: Row) -> Envelope:
    return Envelope(
        id=row[0],
        account=row[1],
        path=tuple(row[2].split(" ")),
        period=row[3],
        cap=row[4],
        consumer=row[5],
        users=tuple(row[6].split(" ")),
        task_id=row[7],
        opened=from_microseconds(row[8]),
        expires=from_microseconds(row[9]),
        closed=None if row[10] is None else from_microseconds(row[10]),
        spent=row[11],
        held=row[12],
    )


def _transfer(row: Row) -> Transfer:
    return Transfer(
        id=row[0],
        ts=from_microseconds(row[1]),
        kind=TransferKind(row[2]),
        account=row[3],
        period=row[4],
        amount=row[5],
        source=row[6],
        by=row[7],
        reason=row[8],
        expires=None if row[9] is None else from_microseconds(row[9]),
    )
