"""Where an audited ledger is read from: a file, or a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import psycopg

from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.postgres.connection import Connection, Database
from llmbudget.ledger.sqlite.schema import FILE_NAME, VERSION, connect_reading

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A ledger as of one instant, and how its engine writes paths."""

    query: Callable[[str], Iterable[Row]]
    path: Callable[[Any], tuple[str, ...]]
    shared: bool = False
    """Whether regions may have slices of it, or it may be a region's own."""


def file_rows(connection: apsw.Connection) -> Source:
    """Read by a connection that has begun to."""
    return Source(connection.execute, lambda text: tuple(text.split(" ")))


def database_rows(connection: Connection) -> Source:
    """Read by a connection that has begun to."""
    return Source(lambda statement: connection.execute(statement.encode()), tuple, True)


@contextmanager
def file_source(ledger: Path) -> Iterator[Source]:
    """Read a file, or the one in a directory.

    Raises:
        LedgerUnavailable: there is no ledger, it can't be read, or an older version wrote it.
    """
    path = ledger / FILE_NAME if ledger.is_dir() else ledger
    try:
        connection = connect_reading(path)
        try:
            if int(connection.pragma("user_version")) < VERSION:
                raise LedgerUnavailable(
                    f"{path}: written by an older version: start its gateway once, which brings it "
                    "to this one's schema"
                )
            with connection:
                yield file_rows(connection)
        finally:
            connection.close()
    except apsw.Error as error:
        raise LedgerUnavailable(f"{path}: {error}") from error


@contextmanager
def database_source(file: Path) -> Iterator[Source]:
    """Read the PostgreSQL database whose connection string is in a file.

    Raises:
        LedgerUnavailable: the database can't be used, or holds no ledger of this version.
    """
    database = Database(file)
    try:
        with database.connect() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            connection.execute("SET LOCAL statement_timeout = 0")
            yield database_rows(connection)
    except psycopg.Error as error:
        raise database.unavailable(error) from error
