"""The ledger of a region's gateways, on real databases and a link that breaks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.cutting_proxy import CuttingProxy
from tests.support.shared_ledger import SharedLedger
from tests.unit.ledger.ledger_helpers import account, ask, task, within

from llmbudget.api.budget import Action, OnExceeded
from llmbudget.api.money import Nano
from llmbudget.ledger.interface import (
    AwaitingApproval,
    BudgetExceeded,
    LedgerUnavailable,
    OutOfReach,
    RepeatedCall,
    Settlement,
)
from llmbudget.ledger.postgres import PostgresLedger
from llmbudget.ledger.regions.messages import LedgerWentBack, Told
from llmbudget.ledger.regions.regional import RegionalLedger

ROOT, TEAM = "llm/org", "llm/team"
CAP = 16_000
DONE = Settlement(cost=Nano(10))


@dataclass
class Stage:
    """An authority, and regions that reach it by links."""

    folder: Path
    server: object
    authority: SharedLedger
    databases: dict[str, SharedLedger] = field(default_factory=dict)
    links: dict[str, CuttingProxy] = field(default_factory=dict)
    opened: list[RegionalLedger | PostgresLedger] = field(default_factory=list)

    async def region(self, name: str, region_seconds: float = 900.0) -> RegionalLedger:
        """Open a gateway's ledger of a region."""
        if name not in self.databases:
            (self.folder / name).mkdir()
            self.databases[name] = SharedLedger(self.server, self.folder / name)
            self.links[name] = CuttingProxy(self.server.port)
        link = self.folder / name / "link"
        link.write_text(
            self.server.url(
                user=self.authority.name, schema=self.authority.name, port=self.links[name].port
            )
        )
        made = RegionalLedger.in_postgres(
            link, self.databases[name].file, ROOT, name, region_seconds=region_seconds
        )
        self.opened.append(made)
        await made.configure(ACCOUNTS, time_zone="UTC", generation=1)
        return made

    async def central(self) -> PostgresLedger:
        """Open a gateway's ledger of a region without a database of its own."""
        made = await PostgresLedger.open(self.authority.file, ROOT)
        self.opened.append(made)
        await made.configure(ACCOUNTS, time_zone="UTC", generation=1)
        return made

    def drop(self, name: str) -> None:
        """Drop a region's tables, as its owner would."""
        schema = self.databases[name].name
        self.server.execute(f"DROP SCHEMA {schema} CASCADE")
        self.server.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {schema}")

    def slice(self, name: str) -> dict[str, int]:
        """What the authority knows of a region's slices, all accounts together."""
        rows = self.authority.query(
            "SELECT sum(granted), sum(shipped), sum(returned), sum(unknown) FROM slices "
            f"JOIN holders ON id = holder WHERE region = '{name}'"
        )
        names = ("granted", "shipped", "returned", "unknown")
        return dict(zip(names, (int(n or 0) for n in rows[0]), strict=True))

    def sums(self) -> dict[str, int]:
        """The root's sums."""
        ((spent, held),) = self.authority.query(
            f"SELECT spent + overage, held FROM account_periods WHERE account = '{ROOT}'"
        )
        return {"spent": spent, "held": held}

    async def end(self) -> None:
        """Close all, and see that all books are sound."""
        for each in self.opened:
            await each.close()
        for link in self.links.values():
            link.close()
        for each in (self.authority, *self.databases.values()):
            each.check_sums()


ACCOUNTS = (account(ROOT, CAP), account(TEAM, None, ROOT))


@pytest.fixture
async def stage(tmp_path, postgres) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, postgres, SharedLedger(postgres, tmp_path))
    yield made
    await made.end()


async def until(true: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.05)


async def spend(ledger: RegionalLedger, id: str, amount: int, name: str = TEAM) -> None:
    await ledger.hold(ask(id, amount, name))
    await ledger.settle(id, Settlement(cost=Nano(amount), tokens_in=3, tokens_out=4))


async def until_refused(spending: Callable[[int], Awaitable[None]]) -> tuple[int, Exception]:
    """Spend until it is refused; tell how often it was not."""
    for number in range(10_000):
        try:
            await spending(number)
        except (BudgetExceeded, LedgerUnavailable) as error:
            return number, error
    raise AssertionError("nothing ever refused it")


async def test_a_call_is_counted_in_its_region_and_has_one_row_at_the_authority(stage) -> None:
    ledger = await stage.region("us")
    await spend(ledger, "a", 10)
    assert stage.databases["us"].query("SELECT id FROM entries") == [("a",)]
    await until(lambda: stage.slice("us")["shipped"] == 10)
    rows = stage.authority.query("SELECT id, path, cost, tokens_in, tokens_out FROM entries")
    assert rows == [("a", [TEAM, ROOT], 10, 3, 4)]
    assert (await ledger.entry("a")).cost == 10
    assert ledger.balance(ROOT).spent == 10


async def test_a_slice_is_a_share_of_what_is_left_and_held_on_the_whole_path(stage) -> None:
    ledger = await stage.region("us")
    await stage.region("eu")
    await ledger.hold(ask("a", 10, TEAM))
    assert stage.slice("us")["granted"] == CAP // 8
    assert stage.sums() == {"spent": 0, "held": CAP // 8}
    assert ledger.balance(ROOT).held == CAP // 8
    await ledger.settle("a", DONE)


async def test_most_calls_ask_nobody(stage) -> None:
    ledger = await stage.region("us")
    commits = ledger._authority.commits
    await spend(ledger, "first", 10)
    await asyncio.gather(*(spend(ledger, f"a{n}", 10) for n in range(100)))
    asked = stage.authority.query("SELECT beats FROM holders")[0][0]
    assert asked < 20
    assert ledger._authority.commits - commits < 40


async def test_a_region_that_is_cut_off_spends_its_slice_and_no_more(stage) -> None:
    ledger = await stage.region("us")
    other = await stage.region("eu")
    await spend(ledger, "first", 100)
    stage.links["us"].part()
    granted = stage.slice("us")["granted"]
    spent, refused = await until_refused(lambda n: spend(ledger, f"a{n}", 100))
    assert (spent + 1) * 100 == granted // 100 * 100
    assert isinstance(refused, OutOfReach)
    assert "region us has spent what it was given" in str(refused)
    # The others may use all that is not held for it.
    left, _ = await until_refused(lambda n: spend(other, f"b{n}", 100))
    assert granted + left * 100 <= CAP
    stage.links["us"].heal()
    await until(lambda: stage.slice("us")["shipped"] == (spent + 1) * 100)
    await until(lambda: stage.sums()["spent"] == (spent + 1 + left) * 100)
    assert stage.authority.query("SELECT count(*) FROM entries") == [(spent + 1 + left,)]


async def test_together_regions_spend_the_cap_to_the_last_call(stage) -> None:
    ledgers = [await stage.region(name) for name in ("us", "eu", "ap")] + [await stage.central()]
    done = dict.fromkeys(range(4), 0)

    async def caller(index: int) -> None:
        waits = 0
        while waits < 400:
            id = f"{index}-{done[index]}"
            try:
                await ledgers[index].hold(ask(id, 100, TEAM))
            except (BudgetExceeded, LedgerUnavailable) as error:
                # On a busy machine the authority may take longer than a call waits.
                if isinstance(error, BudgetExceeded) and not error.only_held:
                    return
                waits += 1
                await asyncio.sleep(0.1)
            else:
                await ledgers[index].settle(id, Settlement(cost=Nano(100)))
                done[index] += 1

    await asyncio.gather(*(caller(index) for index in range(4)))
    assert sum(done.values()) == CAP // 100
    await until(lambda: stage.sums() == {"spent": CAP, "held": 0}, 60)
    assert stage.authority.query("SELECT count(*) FROM entries") == [(CAP // 100,)]


async def test_a_spent_budget_is_told_apart_from_a_held_one(stage) -> None:
    ledger = await stage.region("us")
    await ledger.hold(ask("a", CAP - 10, TEAM))
    with pytest.raises(BudgetExceeded) as held:
        await ledger.hold(ask("b", 20, TEAM))
    assert held.value.only_held
    await ledger.settle("a", Settlement(cost=Nano(CAP - 10)))
    await until(lambda: stage.sums()["spent"] == CAP - 10)
    await asyncio.sleep(1.2)  # Until the gateway has heard of it.
    with pytest.raises(BudgetExceeded) as spent:
        await ledger.hold(ask("c", 20, TEAM))
    assert not spent.value.only_held
    assert (spent.value.account, spent.value.asked) == (ROOT, 20)
    await spend(ledger, "d", 10)


async def test_what_an_idle_region_has_goes_to_who_needs_it(stage) -> None:
    idle, busy = await stage.region("us"), await stage.region("eu")
    await spend(idle, "a", 10)

    async def patient(number: int) -> None:
        for _ in range(50):
            with contextlib.suppress(BudgetExceeded):
                return await spend(busy, f"b{number}", 1_000)
            await asyncio.sleep(0.1)
        raise BudgetExceeded(
            ROOT, asked=Nano(0), left=Nano(0), cap=Nano(0), period=None, only_held=False
        )

    spent, _ = await until_refused(patient)
    assert spent == 15


async def test_what_a_deleted_account_has_not_spent_goes_back_at_once(stage) -> None:
    ledger = await stage.region("us")
    await spend(ledger, "a", 10)
    await ledger.hold(ask("b", 20, TEAM))
    await ledger.configure((account(ROOT, CAP),), time_zone="UTC", generation=2)
    await until(lambda: stage.sums() == {"spent": 10, "held": 20})
    await ledger.settle("b", Settlement(cost=Nano(5)))
    await until(lambda: stage.sums() == {"spent": 15, "held": 0})


async def test_a_call_of_an_account_that_is_deleted_meanwhile_is_refused(stage) -> None:
    ledger, central = await stage.region("us"), await stage.central()
    await central.hold(ask("c", CAP - 50, ROOT))
    big = asyncio.create_task(ledger.hold(ask("big", 100, TEAM)))
    while not ledger._asking._under_way or ledger._asking._short:
        await asyncio.sleep(0)
    ledger._paths = {ROOT: (ROOT,)}  # As the next configuration says.
    with pytest.raises(BudgetExceeded):
        await big
    await central.release("c")


async def test_a_call_is_not_refused_with_a_bigger_one_that_asked_before(stage) -> None:
    ledger, central = await stage.region("us"), await stage.central()
    await central.hold(ask("c", CAP - 50, ROOT))
    big = asyncio.create_task(ledger.hold(ask("big", 100, TEAM)))
    while not ledger._asking._under_way or ledger._asking._short:
        await asyncio.sleep(0)  # Until its question is under way.
    small = [asyncio.create_task(ledger.hold(ask(f"s{n}", 10, TEAM))) for n in range(3)]
    with pytest.raises(BudgetExceeded):
        await big
    await asyncio.gather(*small)
    for hold_id in ("s0", "s1", "s2"):
        await ledger.release(hold_id)
    await central.release("c")


async def test_the_last_gateway_of_a_region_gives_everything_back(stage) -> None:
    ledger = await stage.region("us")
    await spend(ledger, "a", 10)
    await ledger.close()
    assert stage.sums() == {"spent": 10, "held": 0}


async def test_of_gateways_that_end_at_once_the_last_gives_everything_back(stage) -> None:
    for turn in range(3):
        gateways = [await stage.region("us") for _ in range(3)]
        await spend(gateways[0], f"a{turn}", 10)
        await asyncio.gather(*(each.close() for each in gateways))
        assert stage.sums() == {"spent": 10 * (turn + 1), "held": 0}
        assert stage.databases["us"].query("SELECT count(*) FROM owners") == [(0,)]


async def test_one_of_two_gateways_leaves_the_slice_to_the_other(stage) -> None:
    first, second = await stage.region("us"), await stage.region("us")
    await spend(first, "a", 10)
    await first.close()
    assert stage.sums()["held"] > 0
    stage.links["us"].part()
    await spend(second, "b", 10)
    stage.links["us"].heal()


async def test_a_region_that_is_silent_for_too_long_is_charged_and_spends_no_more(stage) -> None:
    ledger = await stage.region("us", region_seconds=4.0)
    watcher = await stage.region("eu", region_seconds=4.0)
    await spend(ledger, "a", 10)
    await until(lambda: stage.slice("us")["shipped"] == 10)
    stage.links["us"].part()
    await spend(ledger, "b", 20)
    granted = stage.slice("us")["granted"]
    await until(lambda: stage.slice("us")["unknown"] == granted - 10)
    with pytest.raises(LedgerUnavailable, match=r"region us could not for \d+ s tell"):
        await ledger.hold(ask("c", 20, TEAM))
    assert "tell the budget's database that it lives" in (ledger.problem or "")
    rows = stage.authority.query("SELECT cost, held, model FROM entries WHERE outcome = 'unknown'")
    assert rows == [(granted - 10, granted - 10, "us")]
    assert stage.sums()["spent"] == granted
    # It comes back: its rows are taken from what was charged, and the rest is given back.
    stage.links["us"].heal()
    await until(lambda: ledger.problem is None)
    await until(lambda: stage.slice("us")["shipped"] == 30)
    await until(lambda: stage.authority.query("SELECT count(*) FROM entries") == [(3,)])
    assert stage.sums()["spent"] == granted
    await ledger.close()
    assert stage.sums()["spent"] == 30
    assert stage.slice("us")["unknown"] == 0
    await spend(watcher, "d", 10)


async def test_tables_that_are_made_anew_are_another_holder(stage) -> None:
    ledger = await stage.region("us")
    await spend(ledger, "a", 10)
    await until(lambda: stage.slice("us")["shipped"] == 10)
    granted = stage.slice("us")["granted"]
    await ledger._region.close()
    ledger._follower.cancel()
    await ledger._authority.close()
    stage.opened.remove(ledger)
    stage.drop("us")
    again = await stage.region("us")
    assert stage.sums() == {"spent": granted, "held": 0}
    await spend(again, "b", 10)
    await until(lambda: ("b",) in stage.authority.query("SELECT id FROM entries"))


async def test_gateways_that_stay_spend_nothing_of_what_the_old_tables_were_given(stage) -> None:
    stays = await stage.region("us")
    for number in range(10):
        await spend(stays, f"a{number}", 400)
    await until(lambda: stage.slice("us")["shipped"] == 4_000)
    charged = stage.slice("us")["granted"]
    stage.drop("us")
    again = await stage.region("us")
    assert stage.sums() == {"spent": charged, "held": 0}
    await until(lambda: stays.problem is None)
    spent = 0
    for ledger in (stays, again):
        with contextlib.suppress(BudgetExceeded, LedgerUnavailable):
            while spent <= CAP:
                await spend(ledger, f"b{spent}", 100)
                spent += 100
    assert CAP - charged - 200 < spent <= CAP - charged
    await until(lambda: stage.sums()["spent"] == charged + spent)


async def test_tables_that_were_dropped_are_made_by_gateways_that_run(stage) -> None:
    ledger = await stage.region("us")
    await spend(ledger, "a", 10)
    await until(lambda: stage.slice("us")["shipped"] == 10)
    charged = stage.slice("us")["granted"]
    stage.drop("us")
    await until(lambda: len(stage.authority.query("SELECT id FROM holders")) == 2)
    await until(lambda: ledger.problem is None)
    await spend(ledger, "b", 10)
    await until(lambda: stage.sums()["spent"] == charged + 10)


async def refused(stage: Stage, ledger: RegionalLedger, statement: str, why: str) -> None:
    """Change a region's database: nothing may be spent then."""
    await spend(ledger, "a", 10)
    await spend(ledger, "b", 10)
    await until(lambda: stage.slice("us")["shipped"] == 20)
    await until(lambda: ledger._shipping._shipped == 2)
    stage.databases["us"].query(statement)
    await until(lambda: why in (ledger.problem or ""))
    assert "region us spends nothing: " in ledger.problem
    with pytest.raises(LedgerUnavailable, match=why):
        await ledger.hold(ask("c", 1, TEAM))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET last_seq = 1",
        "UPDATE entries SET id = 'of a call after the backup' WHERE seq = 2",
    ],
    ids=["rows are missing", "others are in their place"],
)
async def test_a_database_from_a_backup_is_given_nothing_more(stage, statement) -> None:
    ledger = await stage.region("us")
    await refused(stage, ledger, statement, "restored from a backup")
    marked = "SELECT went_back, beats FROM holders"
    await until(lambda: stage.authority.query(marked)[0][0])
    ((_, beats),) = stage.authority.query(marked)
    with pytest.raises(LedgerWentBack):
        await ledger._authority.grant(ledger._region.holder, TEAM, 10, 10)
    with pytest.raises(LedgerWentBack):
        await ledger._authority.hear(ledger._region.holder, Told(2, [], {}))
    assert stage.authority.query(marked) == [(True, beats)]
    # As the message says: its tables are dropped.
    stage.drop("us")
    await until(lambda: ledger.problem is None)
    await spend(ledger, "d", 10)


async def test_what_was_given_back_before_a_backup_came_is_not_spent(stage) -> None:
    ledger = await stage.region("us")
    await spend(ledger, "first", 10)
    keys = [(each.account, each.period) for each in await ledger._region.positions("")]
    await ledger._region.give_back(keys, lambda position: position.unused // 2)
    await until(lambda: stage.slice("us")["returned"] > 0)
    await until(lambda: keys[0] in ledger._shipping._known)
    await until(lambda: ledger._shipping._known[keys[0]].returned > 0)
    stage.databases["us"].query("UPDATE account_periods SET returned = 0")
    await until(lambda: "restored from a backup" in (ledger.problem or ""))
    stage.drop("us")
    await until(lambda: ledger.problem is None)


async def test_a_region_that_has_more_than_it_was_given_spends_nothing(stage) -> None:
    ledger = await stage.region("us")
    await spend(ledger, "first", 10)
    await until(lambda: stage.slice("us")["shipped"] == 10)
    stage.databases["us"].query(
        "UPDATE account_periods SET granted = 1000000, version = (SELECT version + 1 FROM ledger);"
        " UPDATE ledger SET version = version + 1, rare_version = version + 1"
    )
    await spend(ledger, "told", 10)
    await until(lambda: "was given 1000000 nano-USD" in (ledger.problem or ""))
    assert f"gave it {stage.slice('us')['granted']}:" in ledger.problem
    with pytest.raises(LedgerUnavailable, match="until they agree"):
        await ledger.hold(ask("c", 1, TEAM))
    stage.drop("us")
    await until(lambda: ledger.problem is None)


async def test_others_ship_where_the_gateway_that_leads_is_cut_off_alone(stage) -> None:
    leads = await stage.region("us")
    other = RegionalLedger.in_postgres(stage.authority.file, stage.databases["us"].file, ROOT, "us")
    stage.opened.append(other)
    await other.configure(ACCOUNTS, time_zone="UTC", generation=1)
    assert await leads._region.leads()
    stage.links["us"].part()
    await spend(other, "a", 10)
    await until(lambda: stage.slice("us")["shipped"] == 10)
    stage.links["us"].heal()


async def test_a_message_that_comes_late_alarms_nobody(stage) -> None:
    ledger = await stage.region("us")
    await spend(ledger, "a", 10)
    await until(lambda: stage.slice("us")["shipped"] == 10)
    late = await ledger._authority.hear(ledger._region.holder, Told(0, [], {}))
    assert (late.shipped_seq, late.shipped_id) == (1, "a")
    await spend(ledger, "b", 10)
    await until(lambda: stage.slice("us")["shipped"] == 20)
    assert ledger.problem is None


async def test_the_month_turns_when_the_authoritys_does(stage) -> None:
    ledger = await stage.region("us")
    await spend(ledger, "a", 10)
    await ledger.hold(ask("b", 20, TEAM))
    month = ledger.balance(ROOT).period.name
    ledger._authority._store._clock = lambda now: now + timedelta(days=31)
    await until(lambda: ledger._region.balance(ROOT).period.name > month)
    await spend(ledger, "c", 30)
    await ledger.settle("b", Settlement(cost=Nano(20)))
    held = f"SELECT held FROM account_periods WHERE account = '{ROOT}' AND period = '{month}'"
    await until(lambda: stage.authority.query(held) == [(0,)])
    rows = dict(stage.authority.query("SELECT id, period FROM entries"))
    assert (rows["a"], rows["b"]) == (month, month)
    await until(lambda: len(stage.authority.query("SELECT id FROM entries")) == 3)
    assert dict(stage.authority.query("SELECT id, period FROM entries"))["c"] > month


async def test_an_envelope_is_paid_from_the_authority(stage) -> None:
    ledger = await stage.region("us")
    await ledger.open_envelope(task("e", 500, TEAM))
    hold = await ledger.hold(within("e", "a", 100, TEAM))
    assert hold.remaining == 400
    await ledger.settle("a", Settlement(cost=Nano(60)))
    assert (await ledger.envelope("e")).spent == 60
    assert (await ledger.entry("a")).envelope == "e"
    await ledger.close_envelope("e", "team/lead")
    assert stage.databases["us"].query("SELECT count(*) FROM entries") == [(0,)]


async def test_a_key_is_used_once_in_its_region(stage) -> None:
    ledger = await stage.region("us")
    keyed = {"idempotency_key": "k", "fingerprint": "f", "consumer": "team/app"}
    await ledger.hold(ask("a", 10, TEAM, **keyed))
    await ledger.settle("a", DONE)
    with pytest.raises(RepeatedCall):
        await ledger.hold(ask("b", 10, TEAM, **keyed))


async def test_an_intervention_stops_regions_that_still_have_slices(stage) -> None:
    ledger = await stage.region("us")
    stops = account(ROOT, CAP, thresholds=((50, Action.EXECUTIVE_INTERVENTION),))
    accounts = (stops, account(TEAM, None, ROOT))
    await ledger.configure(accounts, time_zone="UTC", generation=2)
    await spend(ledger, "a", CAP // 2)
    await until(lambda: ledger.balance(ROOT).awaiting_approval)
    with pytest.raises(AwaitingApproval):
        await ledger.hold(ask("b", 10, TEAM))


async def test_free_calls_go_on_where_the_budget_lets_them(stage) -> None:
    ledger = await stage.region("us")
    goes_on = account(ROOT, 100, on_exceeded=OnExceeded.DOWNGRADE)
    await ledger.configure((goes_on,), time_zone="UTC", generation=2)
    await spend(ledger, "a", 100, ROOT)
    await spend(ledger, "free", 0, ROOT)
    await ledger.configure((account(ROOT, 100),), time_zone="UTC", generation=3)
    await until(lambda: stage.sums()["spent"] == 100)
    await asyncio.sleep(1.2)
    with pytest.raises(BudgetExceeded) as refused:
        await ledger.hold(ask("stops", 0, ROOT))
    assert not refused.value.only_held


async def test_another_region_can_not_use_its_database(stage) -> None:
    await stage.region("us")
    stage.databases["eu"] = stage.databases["us"]
    (stage.folder / "eu").mkdir()
    stage.links["eu"] = CuttingProxy(stage.server.port)
    with pytest.raises(LedgerUnavailable, match="these tables are the ledger of llm/org in region"):
        await stage.region("eu")
    del stage.databases["eu"]
