"""Envelopes: money set aside for a task, charged once, given back when it ends."""

from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.ledger.ledger_helpers import account, ask, task, within

from llmbudget.api.budget import OnExceeded
from llmbudget.api.money import Nano
from llmbudget.contract.config import BorrowingConfig
from llmbudget.ledger.interface import (
    AwaitingApproval,
    BudgetExceeded,
    EnvelopeClosed,
    EnvelopeExceeded,
    EnvelopeLimit,
    RepeatedCall,
    Settlement,
    UnknownAccount,
    UnknownEnvelope,
)

ROOT, TEAM = "llm/org", "llm/team"
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
TREE = (account(ROOT, 200), account(TEAM, 100, ROOT))


@pytest.fixture
async def tree(ledger):
    await ledger.configure(TREE, time_zone="UTC", generation=1)
    return ledger


def figures(ledger, name):
    balance = ledger.balance(name)
    return balance.spent, balance.held, balance.lent, balance.remaining


async def test_money_is_set_aside_on_the_path_and_charged_once(tree):
    envelope = await tree.open_envelope(task("e", 50, TEAM))
    assert (envelope.left, envelope.path, envelope.period) == (50, (TEAM, ROOT), "2026-11")
    assert figures(tree, TEAM) == (0, 0, 50, 50)
    assert figures(tree, ROOT) == (0, 0, 50, 150)
    assert tree.open_envelopes() == 1
    hold = await tree.hold(within("e", "1", 30, TEAM))
    assert hold.remaining == 20
    assert figures(tree, TEAM) == (0, 0, 50, 50), "it was set aside before"
    entry = await tree.settle("1", Settlement(Nano(20)))
    assert (entry.account, entry.envelope) == (TEAM, "e")
    assert figures(tree, TEAM) == (20, 0, 30, 50)
    assert figures(tree, ROOT) == (20, 0, 30, 150)
    await tree.hold(within("e", "2", 30, TEAM))
    await tree.release("2")
    closed = await tree.close_envelope("e", "team/lead")
    assert (closed.spent, closed.held, closed.left) == (20, 0, 0)
    assert figures(tree, TEAM) == (20, 0, 0, 80)
    assert tree.open_envelopes() == 0
    assert await tree.close_envelope("e", "team/lead") == closed
    assert await tree.envelope("e") == closed


async def test_others_can_not_spend_what_is_set_aside(tree):
    await tree.open_envelope(task("e", 90, TEAM))
    with pytest.raises(BudgetExceeded) as refused:
        await tree.hold(ask("1", 11, TEAM))
    assert not refused.value.only_held, "a task may take longer than a caller waits"
    await tree.hold(within("e", "2", 90, TEAM))


async def test_an_envelope_larger_than_its_budget_is_refused(tree):
    with pytest.raises(BudgetExceeded) as refused:
        await tree.open_envelope(task("e", 101, TEAM))
    assert (refused.value.account, refused.value.left) == (TEAM, 100)
    await tree.hold(ask("1", 150, ROOT))
    with pytest.raises(BudgetExceeded) as refused:
        await tree.open_envelope(task("e", 60, TEAM))
    assert (refused.value.account, refused.value.only_held) == (ROOT, True)
    assert figures(tree, TEAM) == (0, 0, 0, 100)


@pytest.mark.parametrize("amount", [0, -1])
async def test_an_envelope_of_nothing_is_refused(tree, amount):
    with pytest.raises(ValueError, match="amount must be"):
        await tree.open_envelope(task("e", amount, TEAM))


async def test_a_call_has_only_what_its_envelope_has(tree):
    await tree.open_envelope(task("e", 20, TEAM))
    await tree.hold(within("e", "1", 15, TEAM))
    with pytest.raises(EnvelopeExceeded) as refused:
        await tree.hold(within("e", "2", 6, TEAM))
    assert (refused.value.account, refused.value.left, refused.value.cap) == ("e", 5, 20)
    assert refused.value.only_held
    await tree.settle("1", Settlement(Nano(15)))
    with pytest.raises(EnvelopeExceeded) as refused:
        await tree.hold(within("e", "2", 6, TEAM))
    assert not refused.value.only_held


async def test_only_those_that_it_names_may_use_it_and_only_its_opener_may_close_it(tree):
    await tree.open_envelope(task("e", 20, TEAM))
    for request in (
        ask("1", 5, TEAM, envelope="e", consumer="team/stranger"),
        ask("1", 5, TEAM, envelope="e", consumer="team/lead2"),
        ask("1", 5, TEAM, envelope="nothing", consumer="team/lead"),
    ):
        with pytest.raises(UnknownEnvelope):
            await tree.hold(request)
    with pytest.raises(EnvelopeClosed):
        await tree.hold(within("e", "1", 5, ROOT))
    for name, id in (("team/helper", "e"), ("team/lead", "nothing")):
        with pytest.raises(UnknownEnvelope):
            await tree.close_envelope(id, name)


async def test_a_key_opens_one_envelope(tree):
    first = await tree.open_envelope(task("e", 20, TEAM, idempotency_key="k", fingerprint="f"))
    again = task("other", 20, TEAM, idempotency_key="k", fingerprint="f")
    assert await tree.open_envelope(again) == first
    await tree.hold(ask("1", 1, TEAM, consumer="team/lead", idempotency_key="k"))
    with pytest.raises(RepeatedCall) as refused:
        await tree.open_envelope(
            task("other", 21, TEAM, idempotency_key="k", fingerprint="another")
        )
    assert not refused.value.same_request
    await tree.close_envelope("e", "team/lead")
    assert (await tree.open_envelope(again)).closed, "and does not open it again"
    assert figures(tree, TEAM) == (0, 1, 0, 99)


async def test_keys_of_calls_and_of_envelopes_are_not_the_same(tree, engine):
    """Whatever words a caller chooses."""
    await tree.open_envelope(task("e", 20, TEAM, idempotency_key="k", fingerprint="f"))
    words = ("envelope k", "envelopes k", "k")
    for number, key in enumerate(words):
        call = ask(f"{number}", 1, TEAM, consumer="team/lead", idempotency_key=key, fingerprint="f")
        await tree.hold(call)
    for number, key in enumerate(words[:2]):
        asked = task(f"e{number}", 20, TEAM, idempotency_key=key, fingerprint="f")
        assert (await tree.open_envelope(asked)).id == f"e{number}"
    assert engine.count("idempotency") == 6


async def test_amounts_and_counts_are_limited_by_consumer(tree):
    few = {"most_open": 2, "most_amount": Nano(50)}
    await tree.open_envelope(task("1", 30, TEAM, **few))
    with pytest.raises(EnvelopeLimit, match=r"may set aside 0\.00000002 USD"):
        await tree.open_envelope(task("2", 21, TEAM, **few))
    await tree.open_envelope(task("2", 20, TEAM, **few))
    with pytest.raises(EnvelopeLimit, match="has 2 envelopes open, of 2"):
        await tree.open_envelope(task("3", 1, TEAM, **few))
    await tree.open_envelope(task("4", 1, TEAM, consumer="team/another", **few))
    await tree.close_envelope("1", "team/lead")
    await tree.open_envelope(task("5", 30, TEAM, **few))


async def test_what_is_held_when_it_closes_stays_set_aside(tree):
    await tree.open_envelope(task("e", 50, TEAM))
    await tree.hold(within("e", "1", 30, TEAM))
    await tree.close_envelope("e", "team/lead")
    assert figures(tree, TEAM) == (0, 0, 30, 70)
    with pytest.raises(EnvelopeClosed):
        await tree.hold(within("e", "2", 1, TEAM))
    await tree.settle("1", Settlement(Nano(10)))
    assert figures(tree, TEAM) == (10, 0, 0, 90)


async def test_overage_is_taken_from_the_envelope_first(tree):
    await tree.open_envelope(task("e", 50, TEAM))
    await tree.hold(within("e", "1", 10, TEAM))
    await tree.settle("1", Settlement(Nano(30)))
    assert figures(tree, TEAM) == (30, 0, 20, 50)
    await tree.hold(within("e", "2", 10, TEAM))
    await tree.settle("2", Settlement(Nano(60)))
    assert figures(tree, TEAM) == (90, 0, 0, 10)
    with pytest.raises(EnvelopeExceeded):
        await tree.hold(within("e", "3", 1, TEAM))


async def test_a_late_settle_makes_its_envelope_dearer(tree):
    await tree.open_envelope(task("e", 50, TEAM))
    await tree.hold(within("e", "1", 10, TEAM))
    await tree.settle("1", Settlement(None))
    assert figures(tree, TEAM) == (10, 0, 40, 50)
    await tree.settle("1", Settlement(Nano(15)))
    assert figures(tree, TEAM) == (15, 0, 35, 50)
    assert (await tree.envelope("e")).spent == 15


async def test_it_expires_though_nothing_happens(tree, clock):
    expires = clock.now + timedelta(hours=1)
    await tree.open_envelope(task("e", 50, TEAM, lifetime=timedelta(hours=1)))
    clock.now = expires - timedelta(seconds=1)
    await tree.hold(within("e", "1", 5, TEAM))
    clock.now = expires
    await tree.tick()
    assert figures(tree, TEAM) == (0, 0, 5, 95)
    with pytest.raises(EnvelopeClosed):
        await tree.hold(within("e", "2", 5, TEAM))


async def test_it_ends_with_its_month_and_late_calls_stay_there(tree, clock):
    envelope = await tree.open_envelope(task("e", 50, TEAM, lifetime=timedelta(days=99)))
    assert envelope.expires == DECEMBER
    await tree.hold(within("e", "1", 30, TEAM))
    clock.now = DECEMBER
    await tree.tick()
    assert figures(tree, TEAM) == (0, 0, 0, 100)
    assert (await tree.settle("1", Settlement(Nano(20)))).period == "2026-11"
    assert figures(tree, TEAM) == (0, 0, 0, 100)
    assert (await tree.envelope("e")).held == 0


async def test_unused_money_of_an_envelope_is_carried(ledger, clock):
    await ledger.configure([account(cap=100, rollover_nano=100)], time_zone="UTC", generation=1)
    await ledger.open_envelope(task("e", 60))
    await ledger.hold(within("e", "1", 25))
    clock.now = DECEMBER
    await ledger.tick()
    assert ledger.balance(ROOT).cap == 175


async def test_a_budget_that_goes_keeps_its_envelopes_until_they_expire(tree, clock):
    await tree.open_envelope(task("e", 50, TEAM))
    await tree.configure([TREE[0]], time_zone="UTC", generation=2)
    with pytest.raises(UnknownAccount):
        await tree.hold(within("e", "1", 5, TEAM))
    assert figures(tree, ROOT) == (0, 0, 50, 150)
    await tree.configure(TREE, time_zone="UTC", generation=3)
    await tree.hold(within("e", "1", 5, TEAM))
    clock.now += timedelta(days=5)
    await tree.tick()
    assert figures(tree, ROOT) == (0, 0, 5, 195)


async def test_a_budget_that_moves_ends_its_envelopes(tree):
    await tree.open_envelope(task("e", 50, TEAM))
    other = account("llm/other", 100, ROOT)
    moved = [TREE[0], other, account(TEAM, 100, "llm/other")]
    await tree.configure(moved, time_zone="UTC", generation=2)
    assert figures(tree, ROOT) == (0, 0, 0, 200)
    with pytest.raises(EnvelopeClosed):
        await tree.hold(within("e", "1", 5, TEAM))


@pytest.mark.parametrize("lowered", [TEAM, ROOT])
async def test_a_cap_below_what_is_set_aside_stops_the_task_until_there_is_room(tree, lowered):
    await tree.open_envelope(task("e", 50, TEAM))
    await tree.open_envelope(task("f", 40, TEAM))
    await tree.hold(within("e", "under way", 10, TEAM))
    caps = {ROOT: 200, TEAM: 100, lowered: 60}
    lower = [account(ROOT, caps[ROOT]), account(TEAM, caps[TEAM], ROOT)]
    await tree.configure(lower, time_zone="UTC", generation=2)
    with pytest.raises(BudgetExceeded, match=f"{lowered}: asked 5, left 0 of 60") as refused:
        await tree.hold(within("e", "1", 5, TEAM))
    assert not refused.value.only_held, "what is set aside is in the way, not calls under way"
    await tree.settle("under way", Settlement(Nano(10)))
    await tree.close_envelope("f", "team/lead")
    await tree.hold(within("e", "1", 40, TEAM))


async def test_calls_under_way_beside_an_envelope_are_waited_for(tree):
    await tree.open_envelope(task("e", 50, TEAM))
    await tree.hold(ask("beside", 50, TEAM))
    lower = [TREE[0], account(TEAM, 60, ROOT)]
    await tree.configure(lower, time_zone="UTC", generation=2)
    with pytest.raises(BudgetExceeded) as refused:
        await tree.hold(within("e", "1", 5, TEAM))
    assert refused.value.only_held
    await tree.settle("beside", Settlement(Nano(1)))
    await tree.hold(within("e", "1", 5, TEAM))


async def test_free_calls_of_an_envelope_go_on_where_the_budget_lets_them(ledger):
    free = account(ROOT, 100, on_exceeded=OnExceeded.DOWNGRADE)
    await ledger.configure([free], time_zone="UTC", generation=1)
    await ledger.open_envelope(task("e", 50))
    lower = account(ROOT, 10, on_exceeded=OnExceeded.DOWNGRADE)
    await ledger.configure([lower], time_zone="UTC", generation=2)
    await ledger.hold(within("e", "free", 0))
    with pytest.raises(BudgetExceeded):
        await ledger.hold(within("e", "dear", 1))


async def test_a_borrower_whose_lender_has_less_now_spends_no_more_of_its_envelope(ledger):
    def siblings(lender: int):
        return [
            account(ROOT, 1000),
            account(TEAM, 100, ROOT, borrowing=BorrowingConfig(limit_nano=80)),
            account("llm/peer", lender, ROOT, borrowing=BorrowingConfig(limit_nano=0)),
        ]

    await ledger.configure(siblings(100), time_zone="UTC", generation=1)
    await ledger.open_envelope(task("e", 150, TEAM))
    await ledger.hold(within("e", "1", 10, TEAM))
    await ledger.configure(siblings(49), time_zone="UTC", generation=2)
    with pytest.raises(BudgetExceeded, match=TEAM):
        await ledger.hold(within("e", "2", 10, TEAM))
    await ledger.configure(siblings(50), time_zone="UTC", generation=3)
    await ledger.hold(within("e", "2", 10, TEAM))


async def test_a_lender_charged_beyond_a_hold_spends_no_more_of_its_envelope(ledger):
    peer = "llm/peer"
    siblings = [
        account(ROOT, 1000),
        account(TEAM, 100, ROOT, borrowing=BorrowingConfig(limit_nano=0)),
        account(peer, 10, ROOT, borrowing=BorrowingConfig(limit_nano=50)),
    ]
    await ledger.configure(siblings, time_zone="UTC", generation=1)
    await ledger.open_envelope(task("e", 40, TEAM))
    await ledger.hold(ask("lent", 60, peer))
    await ledger.hold(within("e", "1", 10, TEAM))
    await ledger.hold(ask("beside", 10, TEAM))
    await ledger.settle("beside", Settlement(Nano(50)))
    with pytest.raises(BudgetExceeded, match=f"{TEAM}: asked 10, left 0 of 100") as refused:
        await ledger.hold(within("e", "2", 10, TEAM))
    assert refused.value.only_held, "as soon as the borrower gives back"
    await ledger.settle("lent", Settlement(Nano(20)))
    await ledger.hold(within("e", "2", 10, TEAM))


async def test_an_intervention_stops_envelopes_too(ledger):
    stopping = account(ROOT, 100, thresholds=((50, "executive_intervention"),))
    await ledger.configure([stopping], time_zone="UTC", generation=1)
    await ledger.open_envelope(task("e", 40))
    await ledger.hold(ask("1", 50))
    await ledger.settle("1", Settlement(Nano(50)))
    for step in (ledger.hold(within("e", "2", 5)), ledger.open_envelope(task("f", 5))):
        with pytest.raises(AwaitingApproval):
            await step


async def test_a_dead_owners_calls_are_charged_to_their_envelope(engine):
    store = engine.store()
    store.transact(lambda book: book.configure(TREE, time_zone="UTC", generation=1))
    store.transact(lambda book: book.open_envelope(task("e", 50, TEAM)))
    store.transact(lambda book: book.hold(within("e", "1", 30, TEAM)))
    store.crash()
    ledger = await engine.open()
    assert figures(ledger, TEAM) == (30, 0, 20, 50)
    envelope = await ledger.envelope("e")
    assert (envelope.spent, envelope.held, envelope.closed) == (30, 0, None)
    await ledger.hold(within("e", "2", 20, TEAM))
    await ledger.close()
    assert not engine.audited().findings
