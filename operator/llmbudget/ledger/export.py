"""The rows in the 371OS guide's form: `llm_usage.json`, or the same as CSV.

Rows stream from the ledger to the output, however many there are. A cost is a JSON number whose
text is the exact decimal: it never passes through a float here.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import apsw
import psycopg

from llmbudget.api.money import NANO_PER_USD
from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.postgres.connection import Database
from llmbudget.ledger.sqlite.rows import from_microseconds
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
_FETCH: Final = 5000
"""Rows of one answer of a database."""


Row = tuple[Any, ...]
"""The fields, `ts` as an instant and `cost` in nano-USD."""


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
                f"SELECT {', '.join(FIELDS)} FROM entries WHERE ? IS NULL OR period = ? "
                "ORDER BY seq",
                (period, period),
            )
            yield ((from_microseconds(ts), *others) for ts, *others in found)
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
    database = Database(file)
    try:
        with database.connect() as connection, connection.transaction():
            # Whoever reads the output may be slow.
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            month, values = ("WHERE period = %s ", (period,)) if period else ("", ())
            with connection.cursor("export") as found:
                found.itersize = _FETCH
                found.execute(
                    f"SELECT {', '.join(FIELDS)} FROM entries {month}ORDER BY seq", values
                )
                yield iter(found)
    except psycopg.Error as error:
        raise database.unavailable(error) from error


def export(rows: Iterator[Row], output: TextIO, form: Format) -> int:
    """Write rows; tell how many."""
    written = _written(rows)
    return _write_json(written, output) if form == "json" else _write_csv(written, output)


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


def _written(rows: Iterator[Row]) -> Iterator[Row]:
    """Write `ts` and `cost` as their exact text."""
    for ts, provider, model, tokens_in, tokens_out, cost, *others in rows:
        when = ts.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
        yield (when, provider, model, tokens_in, tokens_out, exact_usd(cost), *others)


def exact_usd(nano: int) -> str:
    """Write nano-USD as the shortest exact decimal that JSON reads as a float, such as 0.00005."""
    whole, rest = divmod(nano, NANO_PER_USD)
    return f"{whole}.{f'{rest:09d}'.rstrip('0') or '0'}"


def _write_json(rows: Iterator[Row], output: TextIO) -> int:
    count = 0
    for row in rows:
        output.write(",\n  {\n" if count else "[\n  {\n")
        lines = (
            f'    "{name}": {value if name == "cost" else json.dumps(value)}'
            for name, value in zip(FIELDS, row, strict=True)
        )
        output.write(",\n".join(lines) + "\n  }")
        count += 1
    output.write("\n]\n" if count else "[]\n")
    return count


def _write_csv(rows: Iterator[Row], output: TextIO) -> int:
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(FIELDS)
    count = 0
    for row in rows:
        writer.writerow(row)
        count += 1
    return count
