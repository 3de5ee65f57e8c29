"""Auditing a ledger as people do."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from llmbudget.cli.ledger import command


def assert_sound(ledger: Path) -> None:
    """Run `llmbudget ledger verify` on a file, or on one with a connection string."""
    kind = "--ledger" if ledger.suffix == ".db" else "--postgres"
    result = CliRunner().invoke(command, ["verify", kind, str(ledger)])
    assert result.exit_code == 0, result.output
    assert "the ledger is sound" in result.output
