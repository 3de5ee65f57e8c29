"""`llmbudget usage export` beside a running ledger."""

import csv
import json

from click.testing import CliRunner
from tests.unit.ledger.ledger_helpers import SqliteEngine, account, ask

from llmbudget.api.money import Nano
from llmbudget.cli.usage import command
from llmbudget.ledger.interface import Settlement, Status

FIELDS = [
    "ts",
    "provider",
    "model",
    "tokens_in",
    "tokens_out",
    "cost",
    "task_id",
    "agent",
    "status",
]


async def fill(ledger):
    await ledger.configure([account(cap=None)], time_zone="UTC", generation=1)
    await ledger.hold(ask("1", 10**18, task_id="t-1", agent='a "quoted", name'))
    await ledger.settle("1", Settlement(Nano(123456789_000000001), 10, 20))
    await ledger.hold(ask("2", 50_000))
    await ledger.settle("2", Settlement(Nano(50_000), 1, 2, Status.FALLBACK))


def run(*arguments):
    return CliRunner().invoke(command, ["export", *map(str, arguments)])


def named(engine):
    """Name a ledger on the command line."""
    option = "--ledger" if isinstance(engine, SqliteEngine) else "--postgres"
    return (option, engine.file)


async def test_json_while_the_ledger_is_open(ledger, engine, tmp_path):
    await fill(ledger)
    output = tmp_path / "out.json"
    result = run(*named(engine), "--output", output)
    assert result.exit_code == 0, result.output
    text = output.read_text()
    assert '"cost": 123456789.000000001,' in text
    first, second = json.loads(text)
    assert list(first) == FIELDS
    assert (first["ts"], first["agent"]) == ("2026-11-15T12:00:00.000000", 'a "quoted", name')
    assert (second["cost"], second["status"], second["task_id"]) == (5e-05, "fallback", None)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


async def test_csv_and_one_period(ledger, engine):
    await fill(ledger)
    result = run(*named(engine), "--format", "csv", "--output", "-")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert list(rows[0]) == FIELDS
    assert [row["cost"] for row in rows] == ["123456789.000000001", "0.00005"]
    for period, count in (("2026-11", 2), ("2026-10", 0)):
        other = run(*named(engine), "--period", period, "--output", "-")
        assert len(json.loads(other.stdout)) == count


def test_what_is_no_ledger(tmp_path):
    (tmp_path / "text.db").write_text("no ledger " * 1000)
    (tmp_path / "empty.db").touch()
    for name in ("text.db", "empty.db", ""):
        output = tmp_path / "out.json"
        output.write_text("old")
        result = run("--ledger", tmp_path / name, "--output", output)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert output.read_text() == "old"
    result = run("--postgres", tmp_path / "text.db")
    assert (result.exit_code, "no ledger no ledger" in result.output) == (1, False)
    assert run("--ledger", tmp_path, "--period", "november").exit_code == 2
    assert run().exit_code == 2
