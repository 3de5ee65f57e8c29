"""How a month ends: late settles, overage that is carried on, clocks and time zones."""

from datetime import UTC, datetime

import pytest
from tests.unit.ledger.ledger_helpers import account, ask

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.contract.events import SnapshotEvent
from llmbudget.ledger.interface import BudgetExceeded, Settlement

NOVEMBER = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
JANUARY = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture
async def november(ledger, clock):
    clock.now = NOVEMBER
    await ledger.configure([account(cap=100)], time_zone="UTC", generation=1)
    return ledger


async def spend(ledger, id, cost, amount=10):
    await ledger.hold(ask(id, amount))
    return await ledger.settle(id, Settlement(Nano(cost)))


async def turn(ledger, clock, now):
    clock.now = now
    await ledger.tick()
    return ledger.balance("llm/org")


async def test_late_settle_goes_to_the_holds_month(november, clock):
    await november.hold(ask("1", 10))
    balance = await turn(november, clock, DECEMBER)
    assert (balance.period.name, balance.spent, balance.held) == ("2026-12", 0, 0)
    assert (await november.settle("1", Settlement(Nano(10)))).period == "2026-11"
    assert november.balance("llm/org").spent == 0


async def test_overage_beyond_the_cap_opens_the_next_month_once(november, clock):
    await spend(november, "1", 90, 90)
    await spend(november, "2", 40, 10)
    assert november.balance("llm/org").spent == 130
    assert (await turn(november, clock, DECEMBER)).spent == 30
    assert (await turn(november, clock, JANUARY)).spent == 0


async def test_what_is_carried_on_fits_into_what_the_current_month_counts(november, clock):
    await november.hold(ask("late", 10))
    await turn(november, clock, DECEMBER)
    await spend(november, "1", 2**62 - 100)
    with pytest.raises(ValueError, match="beyond what the ledger counts"):
        await november.settle("late", Settlement(Nano(200)))
    await november.settle("late", Settlement(Nano(99)))


async def test_overage_within_the_cap_is_not_carried(november, clock):
    await spend(november, "1", 50, 10)
    assert (await turn(november, clock, DECEMBER)).spent == 0


async def test_only_overage_is_carried_when_a_cap_was_lowered(november, clock):
    await spend(november, "1", 90, 90)
    await november.configure([account(cap=10)], time_zone="UTC", generation=2)
    assert (await turn(november, clock, DECEMBER)).spent == 0


async def test_late_overage_is_added_to_what_was_carried(november, clock):
    await spend(november, "1", 80, 70)
    await november.hold(ask("late", 20))
    assert (await turn(november, clock, DECEMBER)).spent == 0
    await november.settle("late", Settlement(Nano(20)))
    assert november.balance("llm/org").spent == 0
    await november.hold(ask("december", 5))
    await november.settle("december", Settlement(Nano(5)))
    assert november.balance("llm/org").spent == 5


async def test_late_settle_that_fills_the_month_makes_its_overage_due(november, clock):
    await november.hold(ask("late", 60))
    await spend(november, "1", 70, 40)
    assert (await turn(november, clock, DECEMBER)).spent == 0
    await november.settle("late", Settlement(Nano(60)))
    assert november.balance("llm/org").spent == 30
    await november.settle("late", Settlement(Nano(60)))
    assert november.balance("llm/org").spent == 30


async def test_debit_of_a_skipped_month_is_posted_to_the_current_one(november, clock):
    await november.hold(ask("late", 10))
    await spend(november, "1", 90, 90)
    await turn(november, clock, DECEMBER)
    await turn(november, clock, JANUARY)
    await november.settle("late", Settlement(Nano(25)))
    assert november.balance("llm/org").spent == 15


async def test_raising_the_cap_later_changes_nothing_of_a_closed_month(november, clock):
    await november.hold(ask("late", 10))
    await spend(november, "1", 90, 90)
    await turn(november, clock, DECEMBER)
    await november.configure([account(cap=1000)], time_zone="UTC", generation=2)
    await november.settle("late", Settlement(Nano(30)))
    assert november.balance("llm/org").spent == 20


async def test_debit_crosses_thresholds_and_blocks(ledger, clock):
    clock.now = NOVEMBER
    levels = ((80, Action.DOWNGRADE_MODELS),)
    await ledger.configure([account(cap=100, thresholds=levels)], time_zone="UTC", generation=1)
    await spend(ledger, "1", 190, 100)
    balance = await turn(ledger, clock, DECEMBER)
    assert (balance.spent, balance.level) == (90, 1)
    with pytest.raises(BudgetExceeded):
        await ledger.hold(ask("2", 11))
    assert (await turn(ledger, clock, JANUARY)).level == 0


async def test_clock_that_goes_back_stays_in_the_later_month(november, clock):
    await turn(november, clock, DECEMBER)
    assert (await turn(november, clock, NOVEMBER)).period.name == "2026-12"
    assert (await november.hold(ask("1"))).period == "2026-12"


@pytest.mark.parametrize(
    ("first", "second", "steps"),
    [
        (
            "UTC",
            "America/New_York",
            [
                ("2026-11-30T23:59", "2026-11"),
                ("2026-12-01T00:00", "2026-12"),
                ("2027-01-01T04:59", "2026-12"),
                ("2027-01-01T05:00", "2027-01"),
            ],
        ),
        (
            "America/New_York",
            "Pacific/Auckland",
            [
                ("2026-12-01T04:59", "2026-11"),
                ("2026-12-01T05:00", "2026-12"),
                ("2026-12-31T10:59", "2026-12"),
                ("2026-12-31T11:00", "2027-01"),
            ],
        ),
    ],
)
async def test_time_zone_changes_with_the_next_period(ledger, clock, first, second, steps):
    await ledger.configure([account()], time_zone=first, generation=1)
    await ledger.configure([account()], time_zone=second, generation=2)
    for instant, name in steps:
        balance = await turn(ledger, clock, datetime.fromisoformat(instant).replace(tzinfo=UTC))
        assert balance.period.name == name


async def test_idle_ledger_turns_by_itself(november, clock):
    stream = november.subscribe()
    assert (await anext(stream)).period == "2026-11"
    assert isinstance(await anext(stream), SnapshotEvent)
    clock.now = DECEMBER
    assert (await anext(stream)).period == "2026-12"
    await stream.aclose()


async def test_keys_are_forgotten_a_month_later(november, clock, engine):
    key = {"consumer": "team/app", "idempotency_key": "k"}
    await november.hold(ask("1", 1, **key))
    for now, kept in ((DECEMBER, 1), (JANUARY, 0)):
        await turn(november, clock, now)
        assert engine.count("idempotency") == kept


async def test_old_rows_go_and_their_months_sums_stay(november, clock, engine):
    for number in range(5):
        await spend(november, f"n{number}", 1)
    await turn(november, clock, DECEMBER)
    await spend(november, "d", 2)
    assert await november.forget("2026-11", 100) == 0
    assert await november.forget("2026-12", 3) == 3
    assert await november.forget("2027-01", 100) == 2, "never those of the current month"
    assert await november.forget("2026-12", 100) == 0
    assert [entry.id for entry in await november.entries()] == ["d"]
    sums = "SELECT spent FROM account_periods WHERE account = 'llm/org' ORDER BY period"
    assert [row[0] for row in engine.query(sums)] == [5, 2]


async def test_numbers_go_on_where_all_rows_are_old(november, clock):
    await spend(november, "1", 1)
    (last,) = await november.entries()
    await turn(november, clock, JANUARY)
    assert await november.forget("2027-01", 100) == 0
    await spend(november, "2", 1)
    assert [entry.seq for entry in await november.entries()] == [last.seq, last.seq + 1]
    assert await november.forget("2027-01", 100) == 1


async def test_overage_beyond_several_caps_takes_as_many_months(november, clock):
    await spend(november, "1", 350, 10)
    assert (await turn(november, clock, DECEMBER)).spent == 250
    assert (await turn(november, clock, JANUARY)).spent == 150
    for instant, left in (
        (datetime(2027, 2, 5, tzinfo=UTC), 50),
        (datetime(2027, 3, 5, tzinfo=UTC), 0),
    ):
        assert (await turn(november, clock, instant)).spent == left
