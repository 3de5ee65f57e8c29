"""Tables that have rows in them are brought to newer schemas, under gateways that go on."""

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.unit.ledger.ledger_helpers import PostgresEngine, account, ask, task

from llmbudget.api.money import Nano
from llmbudget.cli.ledger import command
from llmbudget.ledger.interface import LedgerUnavailable, RepeatedCall, Settlement
from llmbudget.ledger.postgres import migrations
from llmbudget.ledger.postgres.connection import Database
from llmbudget.ledger.postgres.migrations import SCHEMA, migrate

REVISIONS = Path(migrations.__file__).parent / "revisions"
NUMBERS = sorted(int(file.name[:4]) for file in REVISIONS.glob("[0-9]*.py"))
OF_THE_FIRST = """
UPDATE ledger SET name = 'llm/gateway', epoch = 1, version = 3, rare_version = 1, last_seq = 2,
    generation = 1, period = '2026-11', time_zone = 'UTC', next_time_zone = 'UTC';
INSERT INTO owners VALUES (1, 3);
INSERT INTO accounts VALUES ('llm/org', NULL, 100, true, '[[80, "downgrade_models"]]', 3, NULL,
    true, 1);
INSERT INTO account_periods VALUES ('llm/org', '2026-10', 50, 80, 0, 0, 30, true, 100, 1);
INSERT INTO account_periods VALUES ('llm/org', '2026-11', 7, 0, 30, 10, 0, false, NULL, 3);
INSERT INTO holds VALUES ('h', '{llm/org}', '2026-11', 10, 'p', 'm', NULL, NULL, 1, 'team/app',
    'held');
SELECT make_entries_partition('2026-10'), make_entries_partition('2026-11');
INSERT INTO entries VALUES (1, 'a', now(), '{llm/org}', '2026-10', 'p', 'm', 1, 1, 130, 50, NULL,
    NULL, 'ok', 'metered');
INSERT INTO entries VALUES (2, 'b', now(), '{llm/org}', '2026-11', 'p', 'm', 1, 1, 7, 7, NULL, NULL,
    'ok', 'metered');
INSERT INTO actions VALUES ('x', 'llm/org', '2026-10', 80, 'downgrade_models', 80, 100, now(),
    false);
INSERT INTO idempotency VALUES ('team/app', 'held', 'h', 'f', '2026-11'),
    ('team/app', 'used', 'b', 'f', '2026-11');
INSERT INTO cursors VALUES ('posthog', 1);
"""
"""Rows of each table, as the first version wrote them: a month that left a debit, one under way,
a call of an owner that is gone."""
OF_THE_TREE = """
UPDATE account_periods SET lent = 40 WHERE period = '2026-11';
INSERT INTO envelopes VALUES ('e', 'llm/org', '{llm/org}', '2026-11', 40, 'team/lead',
    '{team/lead}', NULL, now(), '2026-11-30', NULL, 0, 0, 3);
INSERT INTO idempotency VALUES ('team/lead', 'envelope k', 'e', 'f', '2026-11'),
    ('team/lead', 'envelope call', 'b', 'f', '2026-11');
"""
"""An envelope, whose key is told by a prefix, and a call's key that begins with the same word."""


@pytest.fixture
def engine(tmp_path, clock, postgres) -> PostgresEngine:
    return PostgresEngine(tmp_path, clock, postgres)


async def test_rows_of_the_first_schema_go_through_each_to_the_newest(engine):
    database = Database(engine.file)
    migrate(database, NUMBERS[0])
    engine.query(OF_THE_FIRST)
    for number in NUMBERS[1:]:
        if number == 40:
            engine.query(OF_THE_TREE)
        migrate(database, number)
        assert engine.query("SELECT version_num FROM alembic_version") == [(f"{number:04d}",)]
        assert engine.query("SELECT id, cost FROM entries ORDER BY seq") == [("a", 130), ("b", 7)]
        assert engine.query("SELECT id, amount FROM holds") == [("h", 10)]
    ledger = await engine.open()
    balance = ledger.balance("llm/org")
    assert (balance.spent, balance.held, balance.lent, balance.remaining) == (47, 0, 40, 13)
    for key, entry in (("held", "h"), ("used", "b")):
        repeated = ask("new", consumer="team/app", idempotency_key=key, fingerprint="f")
        with pytest.raises(RepeatedCall) as refused:
            await ledger.hold(repeated)
        assert refused.value.entry_id == entry
    again = task("other", 40, idempotency_key="k", fingerprint="f")
    assert (await ledger.open_envelope(again)).id == "e"
    repeated = ask("new", consumer="team/lead", idempotency_key="envelope call", fingerprint="f")
    with pytest.raises(RepeatedCall):
        await ledger.hold(repeated)
    await ledger.configure([account(rollover_nano=5)], time_zone="UTC", generation=2)
    await ledger.hold(ask("1", 3))
    await ledger.settle("1", Settlement(Nano(3)))
    await ledger.close()
    assert not engine.audited().findings


async def test_gateways_without_loans_stop_where_tables_have_them(engine):
    """They would write terms without what is lent, and look for an envelope's key in vain."""
    migrate(Database(engine.file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "SCHEMA", 30)
        with pytest.raises(LedgerUnavailable, match="they need schema 40, this program knows 30"):
            await engine.open()


# A program of the future, whose tables are newer than this one's

ADDS = """
ALTER TABLE ledger ADD COLUMN colour text;
ALTER TABLE accounts ADD COLUMN shade text;
ALTER TABLE holds ADD COLUMN shade text;
ALTER TABLE entries ADD COLUMN shade text;
CREATE TABLE colours AS SELECT current_setting('statement_timeout') AS name;
CREATE INDEX ON entries (cost);
"""
NEEDS = "UPDATE ledger SET requires = 99;"


@contextmanager
def newer_program(folder: Path, changes: str) -> Iterator[None]:
    """In here, this program has one revision more."""
    revisions = folder / "revisions"
    shutil.copytree(REVISIONS, revisions, ignore=shutil.ignore_patterns("__pycache__"))
    (revisions / "0099_later.py").write_text(
        f"from alembic import op\nrevision, down_revision = '0099', '{NUMBERS[-1]:04d}'\n"
        f"def upgrade():\n    op.get_bind().connection.driver_connection.execute({changes!r})\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "_REVISIONS", revisions)
        patch.setattr(migrations, "SCHEMA", 99)
        yield


@pytest.fixture
async def busy(engine) -> AsyncIterator[list[str]]:
    """Two gateways that spend without pause; what they have spent."""
    gateways = [await engine.open(lease_seconds=60) for _ in range(2)]
    await gateways[0].configure([account(cap=10**9)], time_zone="UTC", generation=1)
    done: list[str] = []

    async def spend(number: int) -> None:
        ledger = gateways[number % 2]
        while True:
            id = f"{number}-{len(done)}"
            await ledger.hold(ask(id))
            await ledger.settle(id, Settlement(Nano(7)))
            done.append(id)

    spending = [asyncio.create_task(spend(number)) for number in range(6)]
    yield done
    for each in spending:
        each.cancel()
    ended = await asyncio.gather(*spending, return_exceptions=True)
    for gateway in gateways:
        await gateway.close()
    assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
    assert not engine.audited().findings


async def gone_on(done: list[str], calls: int = 20) -> None:
    wanted = len(done) + calls
    async with asyncio.timeout(30):
        while len(done) < wanted:
            await asyncio.sleep(0.02)


async def test_older_gateways_go_on_while_a_newer_one_migrates(engine, busy, tmp_path):
    await gone_on(busy)
    with newer_program(tmp_path, ADDS):
        await asyncio.to_thread(migrate, Database(engine.file), 99)
        newer = await engine.open(lease_seconds=60)
    assert engine.query("SELECT name FROM colours") == [("0",)], "a large table takes its time"
    await gone_on(busy)
    await newer.hold(ask("newer"))
    await gone_on(busy)
    await newer.settle("newer", Settlement(Nano(1)))
    older = await engine.open(lease_seconds=60)
    assert (await older.entry("newer")).cost == 1
    await older.close()
    await newer.close()
    assert engine.query("SELECT version_num FROM alembic_version") == [("0099",)]


async def test_older_gateways_stop_where_newer_tables_need_more(engine, tmp_path):
    older = await engine.open(lease_seconds=60)
    await older.configure([account()], time_zone="UTC", generation=1)
    await older.hold(ask("under way"))
    with newer_program(tmp_path, ADDS + NEEDS):
        await asyncio.to_thread(migrate, Database(engine.file), 99)
        newer = await engine.open(lease_seconds=60)
        message = f"they need schema 99, this program knows {SCHEMA}.: install that version"
        await newer.hold(ask("newer"))
    for step in (older.hold(ask("1")), older.settle("under way", Settlement(Nano(3)))):
        with pytest.raises(LedgerUnavailable, match=message):
            await step
    with pytest.raises(LedgerUnavailable, match=message):
        await engine.open()
    result = CliRunner().invoke(command, ["migrate", "--postgres", str(engine.file)])
    assert result.exit_code == 1
    assert re.search(message, result.output)
    assert engine.count("holds") == 2, "nothing is lost"
    with newer_program(tmp_path / "again", ADDS + NEEDS):
        assert (await newer.settle("under way", Settlement(Nano(3)))).cost == 3
        await newer.close()
    with contextlib.suppress(LedgerUnavailable):
        await older.close()
