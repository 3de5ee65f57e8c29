"""The rows in the 371OS guide's form: `llm_usage.json`, or the same as CSV.

Rows stream from the ledger to the output, however many there are. A cost is a JSON number whose
text is the exact decimal: it never passes through a float here. An instant's text is written by the
database, which is quicker at it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import apsw

from llmbudget.api.money import NANO_PER_USD
from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.sqlite.schema import FILE_NAME, connect_reading

FIELDS: Final = (
    "ts",
    "provider",
    "model",
    "tokens_in",
    "tokens_out",
    "cost",
    "task_id",
    "agent",
    "status",
)
"""Names and order of the guide's fields."""

Format = Literal["json", "csv"]
_OTHERS: Final = ", ".join(FIELDS[1:])
_JSON_ROW: Final = "  {\n" + ",\n".join(f'    "{name}": %s' for name in FIELDS) + "\n  }"
_FETCH: Final = 5000
"""Rows of one answer of a database."""
_PIECE: Final = 1000
"""Rows of one piece of the output."""


Row = tuple[Any, ...]
"""The fields, `ts` as it is written and `cost` in nano-USD."""


@contextmanager
def file_rows(ledger: Path, period: str | None = None) -> Iterator[Iterator[Row]]:
    """Read the rows of a file, or of the one in a directory, in the order in which they were
    settled. A gateway may have it open meanwhile.

    Raises:
        LedgerUnavailable: there is no ledger, or it can't be read.
    """
    path = ledger / FILE_NAME if ledger.is_dir() else ledger
    try:
        connection = connect_reading(path)
        try:
            found = connection.execute(
                "SELECT strftime('%Y-%m-%dT%H:%M:%S.', ts / 1000000, 'unixepoch')"
                f" || printf('%06d', ts % 1000000), {_OTHERS} FROM entries"
                " WHERE ? IS NULL OR period = ? ORDER BY seq",
                (period, period),
            )
            yield found
        finally:
            connection.close()
    except apsw.Error as error:
        raise LedgerUnavailable(f"{path}: {error}") from error


@contextmanager
def database_rows(file: Path, period: str | None = None) -> Iterator[Iterator[Row]]:
    """Read the rows of the PostgreSQL database whose connection string is in a file, in the order
    in which they were settled, as of one instant.

    Raises:
        LedgerUnavailable: the database can't be used, or holds no ledger.
    """
    # Only now: its packages take as long to load as 200,000 rows to write.
    import psycopg

    from llmbudget.ledger.postgres.connection import Database

    database = Database(file)
    try:
        with database.connect() as connection, connection.transaction():
            # Whoever reads the output may be slow.
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            month, values = ("WHERE period = %s ", (period,)) if period else ("", ())
            with connection.cursor("export") as found:
                found.itersize = _FETCH
                found.execute(
                    "SELECT to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US'),"
                    f" {_OTHERS} FROM entries {month}ORDER BY seq",
                    values,
                )
                yield iter(found)
    except psycopg.Error as error:
        raise database.unavailable(error) from error


def export(rows: Iterator[Row], output: TextIO, form: Format) -> int:
    """Write rows; tell how many."""
    return _write_json(rows, output) if form == "json" else _write_csv(rows, output)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Write a file so that readers see the old one or the whole new one, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8", newline="") as output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def exact_usd(nano: int) -> str:
    """Write nano-USD as the shortest exact decimal that JSON reads as a float, such as 0.00005."""
    whole, rest = divmod(nano, NANO_PER_USD)
    return f"{whole}.{f'{rest:09d}'.rstrip('0') or '0'}"


def _write_json(rows: Iterator[Row], output: TextIO) -> int:
    count = 0
    while piece := [_json_row(*row) for row in islice(rows, _PIECE)]:
        output.write(",\n" if count else "[\n")
        output.write(",\n".join(piece))
        count += len(piece)
    output.write("\n]\n" if count else "[]\n")
    return count


def _json_row(
    ts: str,
    provider: str,
    model: str,
    tokens_in: int,
    tokens_out: int,
    cost: int,
    task_id: str | None,
    agent: str | None,
    status: str | None,
) -> str:
    return _JSON_ROW % (
        f'"{ts}"',
        _json(provider),
        _json(model),
        tokens_in,
        tokens_out,
        exact_usd(cost),
        _json(task_id),
        _json(agent),
        _json(status),
    )


def _json(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)


def _write_csv(rows: Iterator[Row], output: TextIO) -> int:
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(FIELDS)
    count = 0
    for *before, cost, task_id, agent, status in rows:
        writer.writerow((*before, exact_usd(cost), task_id, agent, status))
        count += 1
    return count
