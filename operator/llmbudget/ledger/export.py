"""The rows in the 371OS guide's form: `llm_usage.json`, or the same as CSV.

Rows stream from the file to the output, however many there are. A cost is a JSON number whose
text is the exact decimal: it never passes through a float here.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import apsw

from llmbudget.api.money import NANO_PER_USD
from llmbudget.ledger.interface import LedgerUnavailable
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


def ledger_file(path: Path) -> Path:
    """Find the file of a ledger that is named by its file or by its directory."""
    return path / FILE_NAME if path.is_dir() else path


def export(ledger: Path, output: TextIO, form: Format, period: str | None = None) -> int:
    """Write the rows of a period, or all of them, in the order in which they were settled.

    The ledger may be in use meanwhile.

    Returns:
        How many rows were written.

    Raises:
        LedgerUnavailable: there is no ledger, or it can't be read.
    """
    path = ledger_file(ledger)
    try:
        connection = connect_reading(path)
        try:
            rows = _rows(connection, period)
            return _write_json(rows, output) if form == "json" else _write_csv(rows, output)
        finally:
            connection.close()
    except apsw.Error as error:
        raise LedgerUnavailable(f"{path}: {error}") from error


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


def _rows(connection: apsw.Connection, period: str | None) -> Iterator[tuple[Any, ...]]:
    """Yield the guide's fields, `ts` and `cost` as their exact text."""
    found = connection.execute(
        "SELECT ts, provider, model, tokens_in, tokens_out, cost, task_id, agent, status "
        "FROM entries WHERE ? IS NULL OR period = ? ORDER BY seq",
        (period, period),
    )
    for ts, provider, model, tokens_in, tokens_out, cost, *others in found:
        when = from_microseconds(ts).replace(tzinfo=None).isoformat(timespec="microseconds")
        yield (when, provider, model, tokens_in, tokens_out, exact_usd(cost), *others)


def exact_usd(nano: int) -> str:
    """Write nano-USD as the shortest exact decimal that JSON reads as a float, such as 0.00005."""
    whole, rest = divmod(nano, NANO_PER_USD)
    return f"{whole}.{f'{rest:09d}'.rstrip('0') or '0'}"


def _write_json(rows: Iterator[tuple[Any, ...]], output: TextIO) -> int:
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


def _write_csv(rows: Iterator[tuple[Any, ...]], output: TextIO) -> int:
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(FIELDS)
    count = 0
    for row in rows:
        writer.writerow(row)
        count += 1
    return count
