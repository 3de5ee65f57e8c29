"""From a file to a database: a budget that outgrew one gateway takes its ledger along.

All of it, to the row, in one transaction of the database, which is only committed if both then tell
the same. A database that holds a ledger already is refused, unless it is this one, moved before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import apsw
import psycopg

from llmbudget.decide.periods import months_before
from llmbudget.ledger.audit.report import Report, audit
from llmbudget.ledger.audit.sources import Source, database_rows, file_rows
from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.postgres.connection import Connection, Database
from llmbudget.ledger.postgres.migrations import migrate
from llmbudget.ledger.postgres.writing import write as write_to_database
from llmbudget.ledger.records import Changes, Header
from llmbudget.ledger.sqlite.rows import Rows
from llmbudget.ledger.sqlite.schema import connect_reading
from llmbudget.ledger.sqlite.store import Ownership, Store

MOVED: Final = "moved from a file"
"""Cursor of a database: the last row's number when a file was moved to it."""
_BATCH: Final = 5000
_COMPARED: Final = (
    "SELECT name, parent, cap, blocks, thresholds, steps, approved_period, active, revision, "
    "rollover, borrows, lends, top_ups, loan FROM accounts",
    "SELECT account, period, spent, overage, debit, held, carried, closed, closing_cap, lent, "
    "rolled FROM account_periods",
    "SELECT period, outcome, status, provider, model, agent, task_id, envelope, count(*), "
    "sum(cost), sum(held), sum(tokens_in), sum(tokens_out), min(seq), max(seq) FROM entries "
    "GROUP BY period, outcome, status, provider, model, agent, task_id, envelope",
    "SELECT id, account, period, cap, consumer, task_id, spent, held FROM envelopes",
    "SELECT id, kind, account, period, amount, source, granted_by, reason FROM transfers",
    "SELECT id, account, period, percentage, action, spent, cap, acknowledged FROM actions",
    "SELECT consumer, key, entry, fingerprint, period FROM idempotency",
    "SELECT name, seq FROM cursors WHERE name <> 'moved from a file'",
    "SELECT generation, period, time_zone, next_time_zone FROM ledger",
)
"""What both must tell alike, in any order."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of it."""

    report: Report
    first: bool
    """False: it was there already, and nothing was done."""


def move(file: Path, database: Database, name: str) -> Moved:
    """Copy a file's ledger into a database, as that of the budget `name`. What calls under way hold
    in the file is charged, as when its gateway starts.

    Raises:
        LedgerUnavailable: a gateway has the file open, it was used since it was moved, the ledger
            is not sound, the database holds another one, or either can't be used. Nothing was
            moved.
    """
    try:
        migrate(database)
        with _owned(file) as source, database.connect() as target, target.transaction():
            target.execute("SET LOCAL statement_timeout = 0")
            target.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            first = _empty(target, source, file, database, name)
            if first:
                _copy(source, target, name)
                _compare(file_rows(source), database_rows(target))
            report = audit(file_rows(source))
            if report.findings:
                raise LedgerUnavailable(f"{file}: this ledger is not sound: {report.findings[0]}")
            return Moved(report, first)
    except apsw.Error as error:
        raise LedgerUnavailable(f"{file}: {error}") from error
    except psycopg.Error as error:
        raise database.unavailable(error) from error


@contextmanager
def _owned(file: Path) -> Iterator[apsw.Connection]:
    """Own the file, with nothing under way in it, as of one instant."""
    if not file.is_file():
        raise LedgerUnavailable(f"{file}: there is no ledger")
    ownership = Ownership(file)
    try:
        store = Store(file, lambda: datetime.now(UTC))
        store.take_over()
        store.close()
        with closing(connect_reading(file)) as connection, connection:
            yield connection
    finally:
        ownership.give_up()


def _empty(
    target: Connection, source: apsw.Connection, file: Path, database: Database, name: str
) -> bool:
    """Tell whether there is nothing yet; False: this very ledger."""
    found = target.execute("SELECT name, generation, last_seq FROM ledger FOR UPDATE").fetchone()
    moved = target.execute("SELECT seq FROM cursors WHERE name = %s", (MOVED,)).fetchone()
    if found == (None, 0, 0):
        return True
    if found is None or found[0] != name or moved is None:
        raise LedgerUnavailable(
            f"PostgreSQL of {database.file}: these tables hold a ledger already: give {name} a "
            "schema of its own"
        )
    last = Rows(source).last_seq()
    if last != moved[0]:
        raise LedgerUnavailable(
            f"{file}: it was used since it was moved: its rows end with number {last}, and those "
            f"that were moved with {moved[0]}"
        )
    return False


def _copy(source: apsw.Connection, target: Connection, name: str) -> None:
    rows = Rows(source)
    header, last = rows.header(), rows.last_seq()
    periods = {period for (period,) in source.execute("SELECT DISTINCT period FROM entries")}
    if header.period is not None:
        periods |= {header.period, months_before(header.period, -1)}
    for period in sorted(periods):
        target.execute("SELECT make_entries_partition(%s)", (period,))
    changes = rows.all_but_entries()
    changes.cursors[MOVED] = last
    write_to_database(target, changes, 1)
    after = 0
    while batch := rows.entry_rows(after, _BATCH):
        after = batch[-1].entry.seq
        write_to_database(target, Changes(entries={row.entry.id: row for row in batch}), 1)
    _begin(target, name, header, last)


def _begin(target: Connection, name: str, header: Header, last: int) -> None:
    configured = header.period is not None
    target.execute(
        "UPDATE ledger SET name = %s, epoch = %s, version = 1, rare_version = 1, "
        "envelopes_version = 1, last_seq = %s, generation = %s, period = %s, time_zone = %s, "
        "next_time_zone = %s",
        (
            name,
            header.epoch,
            last,
            header.generation,
            header.period,
            header.time_zone if configured else None,
            header.next_time_zone if configured else None,
        ),
    )


def _compare(source: Source, target: Source) -> None:
    for statement in _COMPARED:
        ours, theirs = (_counted(each, statement) for each in (source, target))
        if ours != theirs:
            different = sorted(map(str, (ours - theirs) + (theirs - ours)))[:3]
            raise LedgerUnavailable(f"nothing was moved: {statement} differs: {different}")
    if audit(source) != audit(target):
        raise LedgerUnavailable("nothing was moved: the audits of both differ")


def _counted(source: Source, statement: str) -> Counter[tuple[str | int | None, ...]]:
    """Count rows, with whole numbers for what engines call flags and sums."""
    return Counter(
        tuple(cell if cell is None or isinstance(cell, str) else int(cell) for cell in row)
        for row in source.query(statement)
    )
