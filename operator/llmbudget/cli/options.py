"""Options that several commands share."""

from __future__ import annotations

from typing import Final

import click

log_level_option: Final = click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Least level of the JSON lines on standard error.",
)
