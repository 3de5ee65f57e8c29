"""What only a database can do: have many owners, be away, be newer, be somebody else's."""

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner
from tests.support.cutting_proxy import CuttingProxy
from tests.support.postgres_server import PASSWORD, PostgresServer
from tests.unit.ledger.ledger_helpers import PostgresEngine, account, ask, task, within

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.cli.ledger import command
from llmbudget.contract.events import ActionEvent
from llmbudget.ledger.interface import (
    BudgetExceeded,
    EnvelopeClosed,
    EnvelopeExceeded,
    Hold,
    LedgerUnavailable,
    Outcome,
    RepeatedCall,
    Settlement,
)
from llmbudget.ledger.postgres import PostgresLedger, store
from llmbudget.ledger.postgres.migrations import SCHEMA
from llmbudget.ledger.postgres.owners import Watch

HALF = ((50, Action.DOWNGRADE_MODELS),)


@pytest.fixture
def engine(tmp_path, clock, postgres) -> Iterator[PostgresEngine]:
    made = PostgresEngine(tmp_path, clock, postgres)
    yield made
    made.file.write_text(made.url)
    if made.query("SELECT to_regclass('ledger')") != [(None,)]:
        assert not made.audited().findings


@pytest.fixture
async def owners(engine):
    """Three gateways of one budget, that open an empty database at once."""
    async with contextlib.AsyncExitStack() as stack:
        opened = await asyncio.gather(*(engine.open(lease_seconds=60) for _ in range(3)))
        for each in opened:
            stack.push_async_callback(each.close)
        await opened[0].configure(
            [account(cap=100, thresholds=HALF)], time_zone="UTC", generation=1
        )
        yield opened


async def until(true, seconds=10):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


async def test_many_owners_spend_one_cap(owners, engine):
    asked = (owners[n % 3].hold(ask(f"h{n}", 10)) for n in range(300))
    results = await asyncio.gather(*asked, return_exceptions=True)
    granted = [found for found in results if isinstance(found, Hold)]
    assert len(granted) == 10, "I1"
    assert sum(isinstance(found, BudgetExceeded) for found in results) == 290
    for number, hold in enumerate(granted):
        owner = owners[int(hold.id[1:]) % 3]
        await owner.settle(hold.id, Settlement(Nano(number)))
    assert engine.query("SELECT spent, held FROM account_periods") == [(45, 0)]
    rows = await owners[1].entries()
    assert sorted(row.seq for row in rows) == list(range(1, 11)), "I2"


async def test_each_owner_learns_what_the_others_did(owners):
    first, second, third = owners
    await until(lambda: "llm/org" in third.balances())
    await first.hold(ask("1", 60))
    await first.settle("1", Settlement(Nano(60)))
    await until(lambda: third.balance("llm/org").spent == 60)
    assert third.balance("llm/org").level == 1
    hold = await second.hold(ask("2", 40))
    assert hold.remaining == 0, "what an owner holds takes the others into account at once"
    with pytest.raises(BudgetExceeded):
        await first.hold(ask("3", 1))
    action = await anext(e async for e in third.subscribe() if isinstance(e, ActionEvent))
    await second.acknowledge(action.id)
    stream = third.subscribe()
    async for event in stream:
        if isinstance(event, ActionEvent) and event.acknowledged:
            break
    await third.configure([account(cap=1000)], time_zone="UTC", generation=2)
    await until(lambda: first.balance("llm/org").cap == 1000)
    await second.configure([account(cap=5000)], time_zone="UTC", generation=1)
    assert (await first.hold(ask("4", 1))).remaining == 899, "a stale gateway raises nothing"


@pytest.mark.parametrize("few", [64, 0])
async def test_what_others_did_to_many_accounts_is_told_soon(owners, monkeypatch, few):
    monkeypatch.setattr(store, "_FEW", few)
    names = [f"llm/team-{number}" for number in range(70)]
    first, _, third = owners
    tree = [account(cap=1000), *(account(name, 10, "llm/org") for name in names)]
    await first.configure(tree, time_zone="UTC", generation=2)
    await until(lambda: len(third.balances()) == len(tree))
    await asyncio.gather(*(first.hold(ask(name, 3, name)) for name in names))
    await until(lambda: {third.balance(name).held for name in names} == {3})
    assert third.balance("llm/org").held == 210
    await third.hold(ask("mine", 2, names[0]))
    assert third.balance(names[0]).held == 5, "what it did itself is told at once"


async def test_an_id_and_a_key_are_used_once_whichever_gateway_is_asked(owners):
    first, second, _ = owners
    granted = await first.hold(ask("1", 10))
    assert await second.hold(ask("1", 10)) == granted
    entry = await second.settle("1", Settlement(Nano(4)))
    assert await first.settle("1", Settlement(Nano(9))) == entry
    assert await first.release("1") == entry
    assert (await first.entry("1")) == entry
    await until(lambda: first.balance("llm/org").held == 0)
    assert first.balance("llm/org").spent == 4
    key = {"consumer": "team/app", "idempotency_key": "k", "fingerprint": "f"}
    await first.hold(ask("2", 1, **key))
    with pytest.raises(RepeatedCall) as repeated:
        await second.hold(ask("3", 1, **key))
    assert (repeated.value.entry_id, repeated.value.same_request) == ("2", True)


async def test_the_dead_are_charged_and_a_living_one_taken_for_dead_goes_on(engine):
    first = await engine.open(lease_seconds=60)
    await first.configure([account(cap=100)], time_zone="UTC", generation=1)
    await first.hold(ask("below", 10))
    await first.hold(ask("above", 10))
    second = await engine.open(lease_seconds=0)
    assert second.balance("llm/org").spent == 20
    assert {row.outcome for row in await second.entries()} == {Outcome.UNKNOWN}
    assert (await first.settle("below", Settlement(Nano(3)))).cost == 10, "never a refund"
    assert (await first.settle("above", Settlement(Nano(12)))).cost == 12
    assert (await first.hold(ask("next", 5))).remaining == 73
    assert (await first.settle("next", Settlement(Nano(5)))).cost == 5
    assert engine.count("owners") == 2
    await first.close()
    await second.close()
    assert engine.count("owners") == 0


def test_who_was_not_watched_all_the_while_is_not_dead():
    now = [0.0]
    watch = Watch(10, lambda: now[0])
    assert watch.dead({1: 5, 2: 7}, mine=1) == []
    now[0] = 9
    assert watch.dead({1: 5, 2: 7}, mine=1) == []
    now[0] = 10
    assert watch.dead({1: 5, 2: 7, 3: 0}, mine=1) == [2]
    assert watch.dead({1: 5, 2: 8}, mine=1) == [], "it got on"
    now[0] = 25
    watch.interrupted()
    assert watch.dead({1: 5, 2: 8}, mine=1) == [], "the database was away"
    now[0] = 31
    assert watch.dead({1: 5, 2: 8}, mine=1) == []
    watch.interrupted()
    now[0] = 35
    assert watch.dead({1: 5, 2: 8}, mine=1) == [], "what was not seen does not count"
    now[0] = 39
    assert watch.dead({1: 5, 2: 8}, mine=1) == [2], "connections that flap keep nobody alive"


def test_owners_of_tables_that_were_made_anew_are_others():
    now = [0.0]
    watch = Watch(10, lambda: now[0])
    watch.dead({1: 5}, tables="old")
    now[0] = 9
    assert watch.dead({1: 5}, tables="old") == []
    now[0] = 12
    assert watch.dead({1: 5}, tables="new") == [], "its number and count say nothing"
    now[0] = 22
    assert watch.dead({1: 5}, tables="new") == [1]


@pytest.fixture
def proxy(postgres, engine):
    made = CuttingProxy(postgres.port)
    engine.file.write_text(postgres.url(user=engine.name, schema=engine.name, port=made.port))
    yield made
    made.close()


async def test_a_commit_whose_answer_is_lost_counts_once(engine, proxy):
    ledger = await engine.open()
    await ledger.configure([account(cap=1000)], time_zone="UTC", generation=1)
    proxy.cut_next_commit()
    holds = await asyncio.gather(*(ledger.hold(ask(f"h{n}", 10)) for n in range(20)))
    assert proxy.cuts == 1
    assert len(holds) == 20
    assert engine.query("SELECT held FROM account_periods") == [(200,)]
    proxy.cut_next_commit()
    rows = await asyncio.gather(*(ledger.settle(f"h{n}", Settlement(Nano(7))) for n in range(20)))
    assert proxy.cuts == 2
    assert [row.cost for row in rows] == [7] * 20
    assert engine.query("SELECT spent, held FROM account_periods") == [(140, 0)]
    assert engine.count("entries") == 20
    assert engine.count("holds") == 0
    await ledger.close()


async def test_a_commit_that_never_arrives_is_made_again(engine, proxy):
    ledger = await engine.open()
    await ledger.configure([account(cap=1000)], time_zone="UTC", generation=1)
    seen = []

    def second_request(data):
        seen.append(data)
        return len(seen) == 2

    proxy.cut_request = second_request
    await ledger.hold(ask("1", 10))
    assert proxy.cuts == 1
    assert engine.query("SELECT held FROM account_periods") == [(10,)]
    assert (await ledger.settle("1", Settlement(Nano(7)))).cost == 7
    await ledger.close()


async def test_a_hold_that_was_refused_though_it_was_committed_is_given_back(
    engine, proxy, monkeypatch
):
    ledger = await engine.open()
    await ledger.configure([account(cap=1000)], time_zone="UTC", generation=1)
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 0)
    proxy.cut_next_commit()
    with pytest.raises(LedgerUnavailable):
        await ledger.hold(ask("1", 10))
    assert engine.query("SELECT held FROM account_periods") == [(10,)]
    await ledger.hold(ask("2", 1))
    assert engine.query("SELECT held FROM account_periods") == [(1,)]
    assert (await ledger.entry("1")).outcome is Outcome.RELEASED
    await ledger.close()


async def test_a_hold_that_was_refused_though_it_was_committed_is_given_back_once(
    engine, proxy, monkeypatch
):
    """Also where its caller settles it all the same, in the transaction that gives it back."""
    ledger = await engine.open()
    await ledger.configure([account(cap=1000)], time_zone="UTC", generation=1)
    await ledger.hold(ask("0", 500))
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 0)
    proxy.cut_next_commit()
    with pytest.raises(LedgerUnavailable):
        await ledger.hold(ask("1", 10))
    assert (await ledger.settle("1", Settlement(Nano(3)))).outcome is Outcome.RELEASED
    assert engine.query("SELECT spent, held FROM account_periods") == [(0, 500)]
    await ledger.close()


async def test_what_was_granted_outlives_an_outage(engine, proxy, monkeypatch):
    """The refusal of a later call must not give back the hold of one that is under way."""
    ledger = await engine.open()
    await ledger.configure([account(cap=1000)], time_zone="UTC", generation=1)
    await ledger.hold(ask("1", 10))
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 0)
    proxy.cut_request = lambda _: True
    with pytest.raises(LedgerUnavailable):
        await ledger.hold(ask("2", 10))
    proxy.cut_request = lambda _: False
    await ledger.hold(ask("3", 10))
    assert engine.query("SELECT spent, held FROM account_periods") == [(0, 20)]
    assert (await ledger.settle("1", Settlement(Nano(7)))).outcome is Outcome.METERED
    await ledger.close()


async def test_backends_that_are_ended_and_transactions_that_must_be_repeated(engine, postgres):
    ledger = await engine.open()
    await ledger.configure([account(cap=10**6)], time_zone="UTC", generation=1)

    async def spend(caller):
        for n in range(20):
            await ledger.hold(ask(f"{caller}-{n}", 10))
            await ledger.settle(f"{caller}-{n}", Settlement(Nano(7)))

    spending = asyncio.gather(*(spend(caller) for caller in range(10)))
    for pause in itertools.cycle((0.05, 0.05, 0.05, 0.5)):
        if spending.done():
            break
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE usename = '{engine.name}' AND application_name = 'llmbudget'"
        )
        await asyncio.sleep(pause)
    await spending
    assert engine.query("SELECT spent, held FROM account_periods") == [(1400, 0)]
    assert engine.count("entries") == 200
    await ledger.close()


async def test_value_that_the_database_cannot_take_fails_alone(owners):
    first = owners[0]
    results = await asyncio.gather(
        *(first.hold(ask(f"h{n}", 1, task_id="a\0b" if n == 5 else "a")) for n in range(10)),
        return_exceptions=True,
    )
    assert [n for n, found in enumerate(results) if not isinstance(found, Hold)] == [5]
    assert isinstance(results[5], LedgerUnavailable)


async def test_newer_tables(owners, engine):
    engine.query("UPDATE alembic_version SET version_num = '0099'")
    await owners[0].hold(ask("1", 1))
    opened = await engine.open(lease_seconds=60)
    await opened.hold(ask("2", 1))
    await opened.close()
    engine.query("UPDATE ledger SET requires = 99")
    for step in (owners[0].hold(ask("3", 1)), engine.open()):
        with pytest.raises(LedgerUnavailable, match=r"newer version.*schema 99.*install"):
            await step
    engine.query("UPDATE ledger SET requires = 20")
    assert (await owners[0].settle("1", Settlement(Nano(1)))).cost == 1


async def test_another_budgets_ledger(owners, engine):
    with pytest.raises(LedgerUnavailable, match="the ledger of llm/gateway: give llm/other a sch"):
        await engine.open(name="llm/other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: "", "no connection string: write postgresql://"),
        (lambda url: f"postgres:{PASSWORD}", "no connection string: write postgresql://"),
        (lambda url: url.replace(PASSWORD, PASSWORD + "x"), "password authentication failed"),
        (lambda url: url.replace("/postgres?", "/nowhere?"), 'database "nowhere" does not exist'),
        (lambda url: re.sub(r":\d+/", ":1/", url), "Connection refused"),
        (lambda url: url.replace("sslmode=disable", "sslmode=verify-full"), "does not support SSL"),
        (lambda url: url.replace("sslmode=disable&", ""), "does not support SSL"),
        (lambda url: url.replace("sslmode=disable", "sslmode=perhaps"), "sslmode"),
        (lambda url: url.partition("%3D")[0] + "%3Dpublic", "permission denied for schema public"),
    ],
)
async def test_connection_strings_that_lead_nowhere(engine, change, message):
    engine.file.write_text(change(engine.url))
    with pytest.raises(LedgerUnavailable, match=message) as refused:
        await engine.open()
    assert str(engine.file) in str(refused.value)
    assert PASSWORD not in str(refused.value)


async def test_a_database_that_comes_later_is_taken_when_it_is_there(engine):
    url = engine.file.read_text()
    engine.file.write_text(re.sub(r":\d+/", ":1/", url))
    ledger = PostgresLedger(engine.file, "llm/gateway", lambda _: engine.clock.now)
    await until(lambda: "Connection refused" in (ledger.problem or ""))
    with pytest.raises(LedgerUnavailable, match="Connection refused"):
        await ledger.configure([account()], time_zone="UTC", generation=1)
    assert ledger.balances() == {}
    engine.file.write_text(url)
    await until(lambda: ledger.problem is None)
    await ledger.configure([account()], time_zone="UTC", generation=1)
    assert (await ledger.hold(ask("1"))).remaining == 90
    engine.file.write_text("nothing")
    await ledger.close()
    assert engine.count("owners") == 0, "an open connection needs no file"


async def test_no_file_with_a_connection_string(engine):
    engine.file.unlink()
    with pytest.raises(LedgerUnavailable, match="uri: No such file"):
        await engine.open()


async def test_standby(engine, postgres):
    postgres.execute(f"ALTER ROLE {engine.name} SET default_transaction_read_only = on")
    with pytest.raises(LedgerUnavailable, match="standby: name the primary"):
        await engine.open()


async def test_role_that_may_only_use_the_tables(engine, postgres: PostgresServer):
    """As docs/postgresql.md has it where tables are made by another role."""
    user = f"{engine.name}_user"
    postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
    postgres.execute(f"GRANT USAGE ON SCHEMA {engine.name} TO {user}")
    owned = engine.file.read_text()
    engine.file.write_text(postgres.url(user=user, schema=engine.name))
    with pytest.raises(LedgerUnavailable, match=r"permission denied.*grant it"):
        await engine.open()
    engine.file.write_text(owned)
    for _ in range(2):
        result = CliRunner().invoke(command, ["migrate", "--postgres", str(engine.file)])
        assert (result.exit_code, result.output) == (0, f"the tables have schema {SCHEMA}\n")
    engine.query(
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {engine.name} TO {user};"
        f"GRANT EXECUTE ON FUNCTION make_entries_partition TO {user}"
    )
    engine.file.write_text(postgres.url(user=user, schema=engine.name))
    ledger = await engine.open()
    await ledger.configure([account()], time_zone="UTC", generation=1)
    await ledger.hold(ask("1"))
    await ledger.settle("1", Settlement(Nano(1)))
    assert engine.count("entries_2026_11") == 1
    assert engine.count("entries_2026_12") == 0, "the next month's is there before it begins"
    await ledger.close()
    with psycopg.connect(postgres.url(user=user, schema=engine.name)) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DROP TABLE entries")
        connection.rollback()
        with pytest.raises(psycopg.errors.RaiseException, match="no month"):
            connection.execute("SELECT make_entries_partition('2026-11; DROP TABLE holds')")


async def test_owners_share_envelopes(owners):
    first, second = owners[:2]
    await first.open_envelope(task("e", 50))
    await second.hold(within("e", "1", 30))
    with pytest.raises(EnvelopeExceeded):
        await first.hold(within("e", "2", 21))
    await second.settle("1", Settlement(Nano(10)))
    await first.hold(within("e", "2", 40))
    closed = await second.close_envelope("e", "team/lead")
    assert (closed.spent, closed.held) == (10, 40)
    with pytest.raises(EnvelopeClosed):
        await first.hold(within("e", "3", 0))
