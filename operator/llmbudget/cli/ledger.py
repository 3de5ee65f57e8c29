"""`llmbudget ledger`: look after a ledger from outside its gateway."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from zoneinfo import ZoneInfoNotFoundError

import click
import psycopg

from llmbudget.ledger.audit.report import audit
from llmbudget.ledger.audit.sources import database_source, file_source
from llmbudget.ledger.export import exact_usd
from llmbudget.ledger.guide import read_usage_file
from llmbudget.ledger.interface import Entry, LedgerError, LedgerUnavailable
from llmbudget.ledger.moving import move
from llmbudget.ledger.operations import Operations
from llmbudget.ledger.postgres import PostgresLedger
from llmbudget.ledger.postgres.connection import Database
from llmbudget.ledger.postgres.migrations import SCHEMA, migrate
from llmbudget.ledger.sqlite import SqliteLedger
from llmbudget.ledger.sqlite.schema import FILE_NAME


@click.group(name="ledger")
def command() -> None:
    """Audit, move or migrate a ledger, or take another's history over."""


@command.command("migrate", short_help="Make a PostgreSQL ledger's tables, or update them.")
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


@command.command("verify", short_help="Audit a ledger from its rows.")
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
    """Audit a ledger: add everything up again from its rows.

    Findings go to standard output, one a line: where, and what. Notes and the summary go to
    standard error. Exit code 0: sound; 1: there are findings; 2: the ledger can't be read.
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
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    verdict = f"{len(report.findings)} findings" if report.findings else "the ledger is sound"
    click.echo(f"{verdict}: {report}", err=True)
    context.exit(1 if report.findings else 0)


@command.command("take-over", short_help="Charge a history that another system counted.")
@click.option("--account", required=True, metavar="NAMESPACE/NAME", help="The root budget.")
@click.option(
    "--usage",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The 371OS guide's llm_usage.json, also as .json.gz.",
)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the embedded ledger; no gateway may have it open.",
)
@click.option(
    "--postgres",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the connection string of a PostgreSQL ledger.",
)
@click.option("--time-zone", default="UTC", show_default=True, help="The budget's.")
def take_over(
    account: str, usage: Path, ledger: Path | None, postgres: Path | None, time_zone: str
) -> None:
    """Charge what another system counted, so that this month's spend counts against the cap.

    All rows or none; a second time nothing.
    """
    if account.count("/") != 1:
        raise click.BadParameter("write NAMESPACE/NAME", param_hint="--account")
    if (ledger is None) == (postgres is None):
        raise click.UsageError("name one ledger: --ledger or --postgres")
    try:
        drafts = list(read_usage_file(usage, account, time_zone))
        first = asyncio.run(_take_over(account, drafts, ledger, postgres))
    except (LedgerError, ValueError, ZoneInfoNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    if not first:
        click.echo(f"{account} was taken over before: nothing was charged", err=True)
        return
    click.echo(f"{len(drafts)} calls charged to {account}", err=True)
    months: dict[str, int] = defaultdict(int)
    for draft in drafts:
        months[draft.period] += draft.cost
    for period, spent in sorted(months.items()):
        click.echo(f"  {period}  {exact_usd(spent)} USD", err=True)


@command.command("move", short_help="Copy an embedded ledger into PostgreSQL.")
@click.option("--account", required=True, metavar="NAMESPACE/NAME", help="The root budget.")
@click.option(
    "--ledger",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="The embedded ledger's directory or file; no gateway may have it open.",
)
@click.option(
    "--postgres",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the connection string of a schema that holds no ledger yet.",
)
def move_ledger(account: str, ledger: Path, postgres: Path) -> None:
    """Copy an embedded ledger into PostgreSQL, all of it, and compare both.

    All or nothing; a second time nothing. The file is left as it is: remove it, so that no gateway
    goes on with it.
    """
    if account.count("/") != 1:
        raise click.BadParameter("write NAMESPACE/NAME", param_hint="--account")
    file = ledger / FILE_NAME if ledger.is_dir() else ledger
    try:
        moved = move(file, Database(postgres), account)
    except LedgerUnavailable as error:
        raise click.ClickException(str(error)) from None
    what = "moved and compared" if moved.first else "was moved before: nothing was done"
    click.echo(f"{account} {what}: {moved.report}", err=True)


async def _take_over(
    account: str, drafts: list[Entry], ledger: Path | None, postgres: Path | None
) -> bool:
    opened: Operations
    if postgres is not None:
        opened = await PostgresLedger.open(postgres, account)
    else:
        assert ledger is not None
        opened = await SqliteLedger.open(ledger / FILE_NAME)
    try:
        return await opened.take_over("llm_usage.json", account, drafts)
    finally:
        await opened.close()
