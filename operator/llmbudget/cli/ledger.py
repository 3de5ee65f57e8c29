"""`llmbudget ledger`: what the gateways' own role may not do to a PostgreSQL ledger."""

from __future__ import annotations

from pathlib import Path

import click
import psycopg

from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.postgres.connection import Database
from llmbudget.ledger.postgres.migrations import SCHEMA, migrate


@click.group(name="ledger")
def command() -> None:
    """Look after a PostgreSQL ledger."""


@command.command("migrate")
@click.option(
    "--postgres",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the connection string of the role that owns the tables.",
)
def migrate_tables(postgres: Path) -> None:
    """Make the tables, or bring them to this program's schema."""
    database = Database(postgres)
    try:
        migrate(database)
    except psycopg.Error as error:
        raise click.ClickException(str(database.unavailable(error))) from None
    except LedgerUnavailable as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"the tables have schema {SCHEMA}", err=True)
