"""`llmbudget usage`: the ledger's rows for people and other programs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from llmbudget.ledger.export import Format, database_rows, export, file_rows, replacing
from llmbudget.ledger.interface import LedgerError

_STDOUT = Path("-")


@click.group(name="usage")
def command() -> None:
    """Export the calls of a ledger, as JSON or CSV."""


@command.command("export", short_help="Write llm_usage.json, or the same rows as CSV.")
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
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "csv"]),
    default="json",
    show_default=True,
    help="json: the guide's llm_usage.json.",
)
@click.option("--period", help="Only one month, such as 2026-11.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Default: llm_usage.json or llm_usage.csv in this directory; - is standard output.",
)
def export_rows(
    ledger: Path | None,
    postgres: Path | None,
    form: Format,
    period: str | None,
    output: Path | None,
) -> None:
    """Write llm_usage.json in the 371OS guide's form, or the same rows as CSV."""
    if period is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", period, re.ASCII):
        raise click.BadParameter("write a month such as 2026-11", param_hint="--period")
    if ledger is not None and postgres is None:
        source = file_rows(ledger, period)
    elif postgres is not None and ledger is None:
        source = database_rows(postgres, period)
    else:
        raise click.UsageError("name one ledger: --ledger or --postgres")
    target = output or Path(f"llm_usage.{form}")
    try:
        with source as rows:
            if target == _STDOUT:
                export(rows, sys.stdout, form)
                return
            with replacing(target) as file:
                count = export(rows, file, form)
    except (LedgerError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count} rows written to {target}", err=True)
