"""The tables, and how they change: Alembic's revisions, forwards only.

Gateways of two versions run together while a Deployment rolls out. So a revision first only adds;
what older programs can't work with raises `ledger.requires` to its own number, and they refuse
from then on. A program that meets a newer schema works with it as long as `requires` lets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.postgres.connection import Connection, Database

SCHEMA: Final = 60
"""Number of the newest revision here."""
_LOCK: Final = 0x6C6C6D62_75646765
"""Gateways that start at once take turns."""


def migrate(database: Database, schema: int = SCHEMA) -> None:
    """Bring the tables to this program's revision, or to one on the way there, in one transaction.

    Raises:
        LedgerUnavailable: a newer program made the tables and this one can't work with them, or
            the role may not make them.
        psycopg.Error: the database can't be used.
    """
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=database.connect, poolclass=sqlalchemy.pool.NullPool
    )
    try:
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, psycopg.Connection)
            raw.autocommit = False
            if not _current(raw, database, schema):
                raw.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                _shut(raw)
                _upgrade(connection, schema)
                raw.commit()
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from None
        raise


def _shut(connection: Connection) -> None:
    """Let gateways wait at the door, where they hold no other lock, for as long as it takes: the
    index of a large table."""
    connection.execute("SET LOCAL statement_timeout = 0")
    if _exists(connection):
        connection.execute("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE")


def _exists(connection: Connection) -> bool:
    return connection.execute("SELECT to_regclass('ledger')").fetchone() != (None,)


def _current(connection: Connection, database: Database, schema: int) -> bool:
    """Tell whether there is nothing to do: usual, and it needs no right to change tables."""
    if not _exists(connection):
        return False
    found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    requires = connection.execute("SELECT requires FROM ledger").fetchone()
    refuse_newer(requires[0] if requires else 0, database)
    return found is not None and int(found[0]) >= schema


def refuse_newer(requires: int, database: Database) -> None:
    """Stop where the tables are for newer programs.

    Raises:
        LedgerUnavailable.
    """
    if requires > SCHEMA:
        raise LedgerUnavailable(
            f"PostgreSQL of {database.file}: the tables are of a newer version (they need schema "
            f"{requires}, this program knows {SCHEMA}): install that version or a later one"
        )


def _upgrade(connection: sqlalchemy.Connection, schema: int) -> None:
    scripts = ScriptDirectory(str(Path(__file__).parent), version_locations=[str(_REVISIONS)])
    target = f"{schema:04d}"
    context = MigrationContext.configure(
        connection, opts={"fn": lambda revision, _: scripts._upgrade_revs(target, revision)}
    )
    with Operations.context(context):
        context.run_migrations()


_REVISIONS: Final = Path(__file__).parent / "revisions"
