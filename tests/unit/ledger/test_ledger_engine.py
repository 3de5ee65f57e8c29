"""The engine: caps, group commit, ownership, following, and what it does when the disk fails."""

import asyncio
from datetime import UTC, datetime

import pytest
from tests.unit.ledger.ledger_helpers import account, ask

from llmbudget.api.budget import Action, OnExceeded
from llmbudget.api.money import Nano
from llmbudget.contract.events import ActionEvent, BalanceEvent, SnapshotEvent
from llmbudget.ledger import operations
from llmbudget.ledger.interface import (
    AwaitingApproval,
    BudgetExceeded,
    Hold,
    LedgerUnavailable,
    Outcome,
    RepeatedCall,
    Settlement,
    Status,
    UnknownAccount,
    UnknownHold,
)


async def configure(ledger, *accounts, generation=1, time_zone="UTC"):
    await ledger.configure(accounts, time_zone=time_zone, generation=generation)


async def spend(ledger, id, cost, amount=None, account="llm/org"):
    await ledger.hold(ask(id, cost if amount is None else amount, account))
    return await ledger.settle(id, Settlement(Nano(cost), 3, 4))


async def test_two_hundred_at_once_for_a_cap_worth_ten(ledger):
    await configure(ledger, account(cap=100))
    before = ledger.commits
    results = await asyncio.gather(
        *(ledger.hold(ask(f"h{n}", 10)) for n in range(200)), return_exceptions=True
    )
    granted = [found for found in results if isinstance(found, Hold)]
    refused = [found for found in results if isinstance(found, BudgetExceeded)]
    assert (len(granted), len(refused)) == (10, 190)
    assert all(found.only_held and found.left == 0 for found in refused)
    assert ledger.balance("llm/org").held == 100
    assert ledger.commits - before <= 20, "holds that wait together are committed together"


async def test_whole_path_is_charged_and_each_cap_holds(ledger):
    await configure(
        ledger, account(cap=100), account("llm/a", 60, "llm/org"), account("b/b", None, "llm/a")
    )
    hold = await ledger.hold(ask("1", 50, "b/b"))
    assert hold.remaining == 10
    with pytest.raises(BudgetExceeded) as refused:
        await ledger.hold(ask("2", 11, "b/b"))
    assert (refused.value.account, refused.value.left, refused.value.cap) == ("llm/a", 10, 60)
    await ledger.settle("1", Settlement(Nano(30)))
    for name in ("b/b", "llm/a", "llm/org"):
        assert (ledger.balance(name).spent, ledger.balance(name).held) == (30, 0)
    assert ledger.balance("b/b").remaining is None
    assert (await ledger.hold(ask("3", 30, "b/b"))).remaining == 0


async def test_refusal_tells_whether_waiting_helps(ledger):
    await configure(ledger, account(cap=100), account("llm/a", 50, "llm/org"))
    await ledger.hold(ask("held", 50, "llm/a"))
    with pytest.raises(BudgetExceeded) as waiting:
        await ledger.hold(ask("1", 1, "llm/a"))
    assert (waiting.value.account, waiting.value.only_held) == ("llm/a", True)
    await spend(ledger, "spent", 50)
    with pytest.raises(BudgetExceeded) as useless:
        await ledger.hold(ask("2", 51, "llm/a"))
    assert not useless.value.only_held


async def test_settle_below_above_and_unknown(ledger):
    await configure(ledger, account(cap=100))
    assert (await spend(ledger, "below", 7, 10)).cost == 7
    above = await spend(ledger, "above", 25, 10)
    assert (above.cost, above.held, above.outcome) == (25, 10, Outcome.METERED)
    await ledger.hold(ask("unknown", 10))
    unknown = await ledger.settle("unknown", Settlement(None, status=Status.ERROR))
    assert (unknown.cost, unknown.outcome) == (10, Outcome.UNKNOWN)
    await ledger.hold(ask("released", 10))
    released = await ledger.release("released")
    assert (released.cost, released.outcome, released.status) == (0, Outcome.RELEASED, "error")
    assert (ledger.balance("llm/org").spent, ledger.balance("llm/org").held) == (42, 0)
    assert [row.id for row in await ledger.entries()] == ["below", "above", "unknown", "released"]
    assert [row.id for row in await ledger.entries(after=1, limit=2)] == ["above", "unknown"]


async def test_each_step_happens_once(ledger):
    await configure(ledger, account(cap=100))
    first = await ledger.hold(ask("1", 10))
    assert await ledger.hold(ask("1", 10)) == first
    assert await ledger.entry("1") is None
    entry = await ledger.settle("1", Settlement(Nano(5)))
    assert await ledger.settle("1", Settlement(Nano(9))) == entry
    assert await ledger.release("1") == entry
    assert await ledger.entry("1") == entry
    assert ledger.balance("llm/org").spent == 5
    for step in (ledger.settle("2", Settlement(None)), ledger.release("2")):
        with pytest.raises(UnknownHold):
            await step


async def test_late_settle_of_an_unknown_outcome_adds_but_never_refunds(ledger):
    await configure(ledger, account(cap=100))
    await ledger.hold(ask("1", 10))
    await ledger.settle("1", Settlement(None))
    assert (await ledger.settle("1", Settlement(Nano(4)))).cost == 10
    dearer = await ledger.settle("1", Settlement(Nano(13), 1, 2))
    assert (dearer.cost, dearer.outcome, dearer.tokens_out) == (13, Outcome.METERED, 2)
    assert (await ledger.settle("1", Settlement(Nano(20)))).cost == 13
    assert ledger.balance("llm/org").spent == 13
    assert [row.cost for row in await ledger.entries()] == [13]


@pytest.mark.parametrize("amount", [-1, 2**62, 2**80, 1.5, True])
async def test_amounts_that_are_none(ledger, amount):
    await configure(ledger, account(cap=None))
    with pytest.raises(ValueError, match="amount"):
        await ledger.hold(ask("1", amount))
    await ledger.hold(ask("2", 10))
    with pytest.raises(ValueError, match="cost"):
        await ledger.settle("2", Settlement(amount))
    with pytest.raises(ValueError, match="tokens_in"):
        await ledger.settle("2", Settlement(Nano(1), tokens_in=amount))
    assert (await ledger.settle("2", Settlement(Nano(1)))).cost == 1


async def test_sums_never_reach_what_sqlite_cannot_hold(ledger):
    await configure(ledger, account(cap=None))
    await ledger.hold(ask("1", 2**61))
    with pytest.raises(ValueError, match="beyond"):
        await ledger.hold(ask("2", 2**61))
    await ledger.hold(ask("3", 1))
    await ledger.settle("1", Settlement(Nano(2**61)))
    with pytest.raises(ValueError, match="beyond"):
        await ledger.settle("3", Settlement(Nano(2**61)))
    assert (await ledger.settle("3", Settlement(Nano(1)))).cost == 1


async def test_free_calls_stop_or_go_on(ledger):
    await configure(ledger, account(cap=10))
    assert (await ledger.hold(ask("free", 0))).remaining == 10
    await spend(ledger, "all", 10)
    with pytest.raises(BudgetExceeded):
        await ledger.hold(ask("blocked", 0))
    going_on = account(cap=10, on_exceeded=OnExceeded.DOWNGRADE)
    await configure(ledger, going_on, generation=2)
    await ledger.hold(ask("free again", 0))
    with pytest.raises(BudgetExceeded):
        await ledger.hold(ask("not free", 1))


async def test_lowering_a_cap_only_blocks_and_a_stale_configuration_raises_nothing(ledger):
    await configure(ledger, account(cap=100), generation=5)
    await ledger.hold(ask("1", 80))
    await configure(ledger, account(cap=50), generation=6)
    await configure(ledger, account(cap=1000), generation=5)
    with pytest.raises(BudgetExceeded):
        await ledger.hold(ask("2", 1))
    assert ledger.balance("llm/org").remaining == 0
    assert (await ledger.settle("1", Settlement(Nano(70)))).cost == 70


async def test_account_left_out_grants_nothing_and_keeps_its_history(ledger):
    await configure(ledger, account(cap=100), account("llm/a", 50, "llm/org"))
    await ledger.hold(ask("1", 10, "llm/a"))
    await configure(ledger, account(cap=100), generation=2)
    with pytest.raises(UnknownAccount):
        await ledger.hold(ask("2", 10, "llm/a"))
    with pytest.raises(UnknownAccount):
        ledger.balance("llm/a")
    await ledger.settle("1", Settlement(Nano(10)))
    await configure(ledger, account(cap=100), account("llm/a", 50, "llm/org"), generation=3)
    assert ledger.balance("llm/a").spent == 10


@pytest.mark.parametrize(
    ("accounts", "zone", "message"),
    [
        ([account("a/a", parent="a/b")], "UTC", "not configured"),
        ([account("a/a", parent="a/b"), account("a/b", parent="a/a")], "UTC", "circle"),
        ([account(cap=-1)], "UTC", "cap"),
        ([account()], "Mars/Olympus", "time zone"),
    ],
)
async def test_configurations_that_are_none(ledger, accounts, zone, message):
    with pytest.raises(ValueError, match=message):
        await configure(ledger, *accounts, time_zone=zone)
    with pytest.raises(UnknownAccount):
        await ledger.hold(ask("1"))


async def test_levels_and_actions_follow_spend(ledger):
    steps = ((50, Action.DOWNGRADE_MODELS), (80, Action.ENFORCE_STRICT_DOWNGRADE))
    await configure(ledger, account(cap=100, thresholds=steps))
    await ledger.hold(ask("held", 50))
    assert ledger.balance("llm/org").level == 0, "holds cross nothing"
    await ledger.settle("held", Settlement(Nano(50)))
    assert ledger.balance("llm/org").level == 1
    await spend(ledger, "more", 30)
    assert ledger.balance("llm/org").level == 2
    await configure(ledger, account(cap=1000, thresholds=steps), generation=2)
    assert ledger.balance("llm/org").level == 0
    await configure(ledger, account(cap=100, thresholds=steps), generation=3)
    events = await snapshot(ledger, 3)
    assert [(row.percentage, row.spent_nano) for row in events[1:]] == [(50, 50), (80, 80)]


async def test_intervention_stops_calls_until_it_is_approved(ledger):
    stop = ((90, Action.EXECUTIVE_INTERVENTION),)
    await configure(ledger, account(cap=100, thresholds=stop), account("a/a", None, "llm/org"))
    await spend(ledger, "1", 90, account="a/a")
    with pytest.raises(AwaitingApproval) as refused:
        await ledger.hold(ask("2", 0, "a/a"))
    assert (refused.value.account, refused.value.period.name) == ("llm/org", "2026-11")
    assert ledger.balance("llm/org").awaiting_approval
    approved = account(cap=100, thresholds=stop, approved_period="2026-11")
    await configure(ledger, approved, account("a/a", None, "llm/org"), generation=2)
    await ledger.hold(ask("3", 10, "a/a"))


async def test_idempotency_keys(ledger):
    await configure(ledger, account(cap=100))
    key = {"consumer": "team/app", "idempotency_key": "k", "fingerprint": "f"}
    await ledger.hold(ask("1", 10, **key))
    with pytest.raises(RepeatedCall) as running:
        await ledger.hold(ask("2", 10, **key))
    assert (running.value.entry_id, running.value.cost) == ("1", None)
    await ledger.settle("1", Settlement(Nano(7)))
    with pytest.raises(RepeatedCall) as done:
        await ledger.hold(ask("3", 10, **{**key, "fingerprint": "g"}))
    assert (done.value.cost, done.value.same_request) == (7, False)
    await ledger.hold(ask("4", 10, **{**key, "consumer": "team/other"}))
    await ledger.release("4")
    await ledger.hold(ask("5", 10, **{**key, "consumer": "team/other"}))


async def snapshot(ledger, count):
    events = []
    stream = ledger.subscribe()
    async for event in stream:
        events.append(event)
        if len(events) == count:
            break
    await stream.aclose()
    return events


async def test_followers_get_a_snapshot_then_changes(ledger):
    await configure(ledger, account(cap=100, thresholds=((50, Action.NOTIFY_ADMIN),)))
    stream = ledger.subscribe()
    first = await anext(stream)
    assert (first.cap_nano, first.spent_nano, first.config_generation) == (100, 0, 1)
    assert (first.period, first.period_end) == ("2026-11", "2026-12-01T00:00:00+00:00")
    assert await anext(stream) == SnapshotEvent(seq=first.seq)
    for n in range(3):
        await spend(ledger, f"c{n}", 20)
    news = {type(event): event for event in [await anext(stream), await anext(stream)]}
    balance, action = news[BalanceEvent], news[ActionEvent]
    assert (balance.spent_nano, balance.held_nano) == (60, 0), "steps between are left out"
    assert (action.action, action.spent_nano, action.acknowledged) == ("notify_admin", 60, False)
    assert first.seq < min(balance.seq, action.seq)
    await ledger.acknowledge(action.id)
    await ledger.acknowledge("unknown")
    assert (await anext(stream)).acknowledged
    await configure(ledger, account(cap=100, thresholds=((50, Action.NOTIFY_ADMIN),)), generation=2)
    assert (await anext(stream)).config_generation == 2, "a generation is acknowledged"
    await stream.aclose()


async def test_cursors(ledger):
    assert await ledger.cursor("posthog") == 0
    await ledger.advance("posthog", 7)
    assert await ledger.cursor("posthog") == 7


async def ask_and_go(ledger, request):
    """Ask beside two free calls that are under way: one that is alone is answered at once."""
    for other in ("x", "y"):
        await ledger.hold(ask(other, 0))
    waiting = asyncio.ensure_future(ledger.hold(request))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_caller_that_is_gone_holds_nothing(ledger):
    await configure(ledger, account(cap=100))
    await ask_and_go(ledger, ask("1", 100))
    while await ledger.entry("1") is None or ledger.balance("llm/org").held:
        await ledger.tick()
    assert ledger.balance("llm/org").remaining == 100


async def test_giving_back_is_tried_until_the_ledger_can(ledger, monkeypatch):
    await configure(ledger, account(cap=100))
    submit, tries = ledger._submit, 0

    def failing(run, **how):
        nonlocal tries
        if how["about"].new or how["about"].id is None or tries == 2:
            return submit(run, **how)
        tries += 1
        refused = asyncio.get_running_loop().create_future()
        refused.set_exception(LedgerUnavailable("away"))
        return refused

    monkeypatch.setattr(ledger, "_submit", failing)
    monkeypatch.setattr(operations, "_AGAIN_SECONDS", 0.01)
    await ask_and_go(ledger, ask("1", 100))
    while await ledger.entry("1") is None:
        await asyncio.sleep(0.005)
    assert tries == 2
    assert (await ledger.entry("1")).outcome is Outcome.RELEASED


async def test_a_caller_that_is_gone_and_was_refused_leaves_nothing(ledger):
    await configure(ledger, account(cap=100))
    await ask_and_go(ledger, ask("1", 101))
    await ledger.tick()
    assert await ledger.entry("1") is None
    assert ledger.balance("llm/org").remaining == 100


async def test_next_owner_charges_what_was_left_and_counts_on(engine):
    first = await engine.open()
    await configure(first, account(cap=100, thresholds=((50, Action.NOTIFY_ADMIN),)))
    await first.hold(ask("1", 60))
    (before,) = await snapshot(first, 1)
    await first.close()
    second = await engine.open()
    balance, action = await snapshot(second, 2)
    assert (balance.spent_nano, balance.held_nano) == (60, 0)
    assert balance.seq > before.seq
    assert action.percentage == 50
    entry = await second.entry("1")
    assert (entry.outcome, entry.cost) == (Outcome.UNKNOWN, 60)
    assert (await second.settle("1", Settlement(Nano(1)))).cost == 60
    assert (await second.settle("1", Settlement(Nano(61)))).cost == 61
    assert second.balance("llm/org").spent == 61
    await second.close()


async def test_closed_ledger_refuses(engine):
    ledger = await engine.open()
    await configure(ledger, account())
    pending = asyncio.ensure_future(ledger.hold(ask("1")))
    await asyncio.sleep(0)
    await ledger.close()
    assert (await pending).amount == 10, "what is queued is committed"
    for call in (ledger.hold(ask("2")), ledger.entry("1")):
        with pytest.raises(LedgerUnavailable, match="closed"):
            await call
    await ledger.close()


async def test_time_is_the_ledgers_clock(ledger, clock):
    await configure(ledger, account(cap=100))
    await ledger.hold(ask("1", 10))
    clock.now = datetime(2026, 11, 20, 1, 2, 3, 4, tzinfo=UTC)
    assert (await ledger.settle("1", Settlement(Nano(5)))).ts == clock.now
