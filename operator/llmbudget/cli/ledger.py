"""`llmbudget ledger`: look after a ledger from outside its gateway."""

from __future__ import annotations

from pathlib import Path

import click
import psycopg

from llmbudget.ledger.audit import audit, database_source, file_source
from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.postgres.connection import Database
from llmbudget.ledger.postgres.migrations import SCHEMA, migrate


@click.group(name="ledger")
def command() -> None:
    """Look after a ledger."""


@command.command("migrate")
@click.option(
    "--postgres",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the connection string of the role that owns the tables.",
)
def migrate_tables(postgres: Path) -> None:
    """Make a PostgreSQL ledger's tables, or bring them to this program's schema."""
    database = Database(postgres)
    try:
        migrate(database)
    except psycopg.Error as error:
        raise click.ClickException(str(database.unavailable(error))) from None
    except LedgerUnavailable as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"the tables have schema {SCHEMA}", err=True)


class _Unreadable(click.ClickException):
    """The ledger can't be audited, which says nothing of its money."""

    exit_code = 2


@command.command("verify")
@click.option(
    "--ledger",
    type=click.Path(path_type=Path, exists=True),
    help="The embedded ledger's directory or file; a gateway may have it open.",
)
@click.option(
    "--postgres",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the connection string of a PostgreSQL ledger.",
)
@click.pass_context
def verify(context: click.Context, ledger: Path | None, postgres: Path | None) -> None:
    """Audit a ledger from its rows; exit with 1 where its sums are not theirs.

    What is wrong stands on standard output, one finding a line: where, and what. A ledger that
    can't be read ends with 2.
    """
    if ledger is not None and postgres is None:
        source = file_source(ledger)
    elif postgres is not None and ledger is None:
        source = database_source(postgres)
    else:
        raise click.UsageError("name one ledger: --ledger or --postgres")
    try:
        with source as found:
            report = audit(found)
    except LedgerUnavailable as error:
        raise _Unreadable(str(error)) from error
    for finding in report.findings:
        click.echo(str(finding))
    verdict = f"{len(report.findings)} findings" if report.findings else "the ledger is sound"
    click.echo(f"{verdict}: {report}", err=True)
    context.exit(1 if report.findings else 0)
