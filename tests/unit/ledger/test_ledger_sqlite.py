"""What only the file can do: have one owner, be no database, be full."""

import asyncio
import threading

import apsw
import pytest
from tests.unit.ledger.ledger_helpers import account, ask, reading, task

from llmbudget.api.money import Nano
from llmbudget.ledger.audit.report import audit
from llmbudget.ledger.audit.sources import file_source
from llmbudget.ledger.interface import BudgetExceeded, Hold, LedgerUnavailable, Settlement
from llmbudget.ledger.sqlite import SqliteLedger, schema, writer


@pytest.fixture
async def ledger(tmp_path, clock):
    opened = await SqliteLedger.open(tmp_path / "ledger.db", clock)
    yield opened
    await opened.close()


async def test_one_owner(ledger, tmp_path):
    with pytest.raises(LedgerUnavailable, match="in use by process"):
        await SqliteLedger.open(tmp_path / "ledger.db")


async def test_newer_schema_and_no_database(tmp_path):
    newer = tmp_path / "newer.db"
    connection = apsw.Connection(str(newer))
    connection.pragma("user_version", 999)
    connection.close()
    with pytest.raises(LedgerUnavailable, match="newer version"):
        await SqliteLedger.open(newer)
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"no database at all" * 1000)
    with pytest.raises(LedgerUnavailable, match="not a database"):
        await SqliteLedger.open(garbage)
    with pytest.raises(LedgerUnavailable):
        await SqliteLedger.open(garbage / "below-a-file.db")


async def test_a_file_of_the_first_schema_is_brought_to_this_one(tmp_path, clock):
    path = tmp_path / "old.db"
    connection = apsw.Connection(str(path))
    connection.execute(schema._TABLES)
    connection.execute(
        "UPDATE ledger SET epoch = 1, generation = 1, period = '2026-11', time_zone = 'UTC', "
        "next_time_zone = 'UTC';"
        "INSERT INTO accounts VALUES ('llm/org', NULL, 100, 1, '[]', 3, NULL, 1, 1);"
        "INSERT INTO account_periods VALUES ('llm/org', '2026-10', 50, 80, 0, 0, 30, 1, 100);"
        "INSERT INTO account_periods VALUES ('llm/org', '2026-11', 7, 0, 30, 10, 0, 0, NULL);"
        "INSERT INTO holds VALUES ('h', 'llm/org', '2026-11', 10, 'p', 'm', NULL, NULL, 1, NULL, "
        "NULL);"
        "INSERT INTO entries VALUES (1, 'a', 0, 'llm/org', '2026-10', 'p', 'm', 1, 1, 130, 50, "
        "NULL, NULL, 'ok', 'metered');"
        "INSERT INTO entries VALUES (2, 'b', 0, 'llm/org', '2026-11', 'p', 'm', 1, 1, 7, 7, NULL, "
        "NULL, 'ok', 'metered');"
    )
    connection.pragma("user_version", 1)
    connection.close()
    with pytest.raises(LedgerUnavailable, match="start its gateway once"), file_source(path):
        pass
    opened = await SqliteLedger.open(path, clock)
    balance = opened.balance("llm/org")
    assert (balance.spent, balance.held, balance.lent, balance.remaining) == (47, 0, 0, 53)
    await opened.configure([account(rollover_nano=5)], time_zone="UTC", generation=2)
    await opened.open_envelope(task("e", 10))
    await opened.close()
    with file_source(path) as source:
        assert audit(source).findings == ()


async def test_full_disk_grants_nothing_and_is_recovered_from(tmp_path, ledger):
    """SQLite's own page limit makes the file full at a real write."""
    await ledger.configure([account(cap=None)], time_zone="UTC", generation=1)
    await ledger.hold(ask("before"))
    store = ledger._writer._store
    full = threading.Event()

    def limit():
        connection = store._connection
        pages = connection.pragma("page_count")
        connection.pragma("max_page_count", pages)
        full.set()

    await ledger._submit(lambda book: limit())
    assert full.is_set()
    results = await asyncio.gather(
        *(ledger.hold(ask(f"h{n}-{'x' * 500}")) for n in range(100)), return_exceptions=True
    )
    refused = [found for found in results if isinstance(found, LedgerUnavailable)]
    assert refused, "the file was full"
    assert "full" in str(refused[0])
    assert str(tmp_path) in str(refused[0])
    granted = [found.id for found in results if isinstance(found, Hold)]
    assert (await ledger.hold(ask("after"))).id == "after"
    with reading(tmp_path / "ledger.db") as file:
        held = [id for (id,) in file.execute("SELECT id FROM holds")]
    assert sorted(held) == sorted(["before", "after", *granted])
    assert ledger.balance("llm/org").held == 10 * len(held)


async def test_a_call_that_is_alone_waits_for_few_turns_of_the_loop(ledger, monkeypatch):
    """One to hand it over, one to go on: what a thread and a wake-up would take are hundreds."""
    monkeypatch.setattr(writer, "PATIENCE_SECONDS", 10.0)
    await ledger.configure([account(cap=100)], time_zone="UTC", generation=1)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    for name in ("1", "2"):
        await asyncio.sleep(0)
        before = turns
        assert (await ledger.hold(ask(name, 10))).remaining == (90 if name == "1" else 83)
        assert turns - before <= 3
        assert (await ledger.settle(name, Settlement(Nano(7)))).cost == 7
    counting.cancel()
    with pytest.raises(BudgetExceeded):
        await ledger.hold(ask("3", 87))
    assert [(await ledger.hold(ask(name, 10))).remaining for name in ("4", "5")] == [76, 66]


async def test_while_others_are_under_way_the_loop_waits_for_no_commit(ledger, monkeypatch):
    monkeypatch.setattr(writer, "PATIENCE_SECONDS", 10.0)
    await ledger.configure([account(cap=100)], time_zone="UTC", generation=1)
    for name in ("1", "2"):
        await ledger.hold(ask(name, 10))
    started, ended = threading.Event(), threading.Event()
    take = ledger._writer._queue.take

    def held_up(seconds):
        started.set()
        ended.wait(10)
        return take(seconds)

    ledger._writer._queue.take = held_up
    await asyncio.to_thread(started.wait, 10)
    third = asyncio.create_task(ledger.hold(ask("3", 10)))
    try:
        async with asyncio.timeout(5):
            done, _ = await asyncio.wait({third}, timeout=0.05)
            assert not done
    finally:
        ended.set()
    assert (await third).remaining == 70
    assert ledger.balance("llm/org").held == 30


async def test_a_lone_call_does_not_overtake_what_was_asked_before_it(ledger):
    await ledger.configure([account(cap=100)], time_zone="UTC", generation=1)
    asked = [asyncio.create_task(ledger.hold(ask(str(number), 10))) for number in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    last = await ledger.hold(ask("last", 10))
    assert all(hold.done() for hold in asked)
    assert last.remaining == 60
    assert [hold.result().remaining for hold in asked] == [90, 80, 70]
