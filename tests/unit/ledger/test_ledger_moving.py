"""A ledger moves from a file to a database, all of it or nothing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit.ledger.ledger_helpers import (
    Clock,
    PostgresEngine,
    SqliteEngine,
    account,
    ask,
    task,
    within,
)

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.cli.ledger import command
from llmbudget.contract.config import BorrowingConfig, TopUpConfig
from llmbudget.ledger import moving
from llmbudget.ledger.interface import Outcome, RepeatedCall, Settlement
from llmbudget.ledger.sqlite import SqliteLedger

ROOT, TEAM, PEER = "llm/org", "llm/team", "llm/peer"
HALF = ((50, Action.DOWNGRADE_MODELS),)


@pytest.fixture
def database(tmp_path, clock, postgres) -> PostgresEngine:
    return PostgresEngine(tmp_path, clock, postgres)


def tree():
    lending = BorrowingConfig(limit_nano=50)
    expires = datetime(2026, 12, 20, tzinfo=UTC)
    grant = TopUpConfig(id="launch", amount_nano=9, by="ada", reason="why not", expires=expires)
    return (
        account(ROOT, 1000, thresholds=HALF),
        account(TEAM, 100, ROOT, thresholds=HALF, borrowing=lending, top_ups=[grant]),
        account(PEER, 100, ROOT, borrowing=lending, rollover_nano=30),
    )


@pytest.fixture
async def file(tmp_path: Path, clock: Clock) -> Path:
    """Two months of everything that a ledger knows, and one call under way."""
    path = tmp_path / "ledger" / "ledger.db"
    ledger = await SqliteLedger.open(path, clock)
    await ledger.configure(tree(), time_zone="Europe/Berlin", generation=7)
    for id, held, cost in (("c", 5, None), ("a", 60, 60), ("b", 10, 170)):
        await ledger.hold(ask(id, held, TEAM, task_id="t", agent="ada"))
        await ledger.settle(id, Settlement(None if cost is None else Nano(cost), 3, 4))
    clock.now += timedelta(days=20)
    await ledger.hold(
        ask("d", 120, PEER, consumer="team/app", idempotency_key="k", fingerprint="f")
    )
    await ledger.settle("d", Settlement(Nano(120)))
    await ledger.configure(tree(), time_zone="Europe/Berlin", generation=8)
    await ledger.open_envelope(task("open", 12, PEER, idempotency_key="k", fingerprint="f"))
    await ledger.open_envelope(task("closed", 2, PEER))
    await ledger.hold(within("open", "e", 4, PEER))
    await ledger.settle("e", Settlement(Nano(3)))
    await ledger.close_envelope("closed", "team/lead")
    await ledger.hold(ask("under way", 2, PEER))
    await ledger.advance("posthog", 3)
    await ledger.close()
    return path


def move(file: Path, database: PostgresEngine, name: str = ROOT) -> Result:
    where = ["--ledger", str(file.parent), "--postgres", str(database.file)]
    return CliRunner().invoke(command, ["move", "--account", name, *where])


async def test_everything_moves_and_goes_on(file, database, clock):
    moved = move(file, database)
    assert (moved.exit_code, moved.output) == (
        0,
        "llm/org moved and compared: 6 rows, 3 accounts, 2 months, 0 holds under way, "
        "1 envelopes open\n",
    )
    before = await SqliteEngine(file.parent, clock).open()
    after = await database.open(name=ROOT)
    assert after.balances() == before.balances()
    entries = await after.entries()
    assert entries == await before.entries()
    assert {e.id for e in entries if e.outcome is Outcome.UNKNOWN} == {"c", "under way"}
    assert await after.envelope("open") == await before.envelope("open")
    assert await after.cursor("posthog") == 3
    await before.close()
    repeated = ask("new", 120, PEER, consumer="team/app", idempotency_key="k", fingerprint="f")
    with pytest.raises(RepeatedCall):
        await after.hold(repeated)
    again = task("new", 12, PEER, idempotency_key="k", fingerprint="f")
    assert (await after.open_envelope(again)).id == "open"
    await after.hold(within("open", "g", 4, PEER))
    assert (await after.settle("g", Settlement(Nano(4)))).seq == 7
    await after.configure(tree(), time_zone="UTC", generation=7)
    assert after.balance(ROOT).period.start.tzinfo is not UTC, "an older generation is none"
    await after.close()
    assert not database.audited().findings


async def test_a_second_time_nothing_moves_and_a_file_that_was_used_since_is_refused(
    file, database, clock
):
    assert move(file, database).exit_code == 0
    again = move(file, database)
    assert (again.exit_code, "was moved before: nothing was done" in again.output) == (0, True)
    assert database.count("entries") == 6
    ledger = await SqliteLedger.open(file, clock)
    await ledger.hold(ask("later", 1, ROOT))
    await ledger.release("later")
    await ledger.close()
    refused = move(file, database)
    assert refused.exit_code == 1
    assert "used since it was moved: its rows end with number 7, and those that" in refused.output


async def test_a_database_that_holds_another_ledger_is_refused(file, database):
    other = await database.open(name=ROOT)
    await other.configure([account()], time_zone="UTC", generation=1)
    await other.close()
    for name in (ROOT, "llm/other"):
        refused = move(file, database, name)
        assert refused.exit_code == 1
        assert f"hold a ledger already: give {name} a schema of its own" in refused.output


async def test_a_file_that_a_gateway_has_open_does_not_move(file, database, clock):
    gateway = await SqliteLedger.open(file, clock)
    refused = move(file, database)
    assert refused.exit_code == 1
    assert "in use by process" in refused.output
    await gateway.close()
    assert database.count("entries") == 0
    assert move(file, database).exit_code == 0


async def test_what_does_not_compare_is_not_moved(file, database, monkeypatch):
    monkeypatch.setattr(moving, "_BATCH", 10)
    entry_rows = moving.Rows.entry_rows
    monkeypatch.setattr(moving.Rows, "entry_rows", lambda *it: entry_rows(*it)[1:])
    refused = move(file, database)
    assert refused.exit_code == 1
    assert "nothing was moved" in refused.output
    assert (database.count("entries"), database.count("accounts")) == (0, 0)
    monkeypatch.undo()
    assert move(file, database).exit_code == 0


def test_no_ledger(tmp_path, database):
    refused = move(tmp_path / "ledger.db", database)
    assert (refused.exit_code, "there is no ledger" in refused.output) == (1, True)
