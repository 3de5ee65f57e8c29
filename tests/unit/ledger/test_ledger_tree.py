"""A tree of accounts: top-ups, what is carried into the next month, what siblings lend."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.ledger.ledger_helpers import Clock, account, ask

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig, BorrowingConfig, TopUpConfig
from llmbudget.contract.events import BalanceEvent, SnapshotEvent
from llmbudget.ledger.book import Book
from llmbudget.ledger.interface import BudgetExceeded, Settlement, UnknownAccount
from llmbudget.ledger.records import Header

DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
JANUARY = datetime(2027, 1, 1, tzinfo=UTC)
ROOT, A, B, C = "llm/org", "llm/a", "llm/b", "llm/c"


def top_up(id: str = "launch", amount: int = 50, expires: datetime = JANUARY) -> TopUpConfig:
    return TopUpConfig(id=id, amount_nano=amount, by="ada", reason="the launch", expires=expires)


def lending(limit: int, lends: int | None = None) -> BorrowingConfig:
    return BorrowingConfig(limit_nano=limit, lending_limit_nano=lends)


async def configure(ledger, *accounts, generation=1, time_zone="UTC"):
    await ledger.configure(accounts, time_zone=time_zone, generation=generation)


async def spend(ledger, id, cost, name=ROOT, held=None):
    await ledger.hold(ask(id, cost if held is None else held, name))
    await ledger.settle(id, Settlement(Nano(cost)))


async def room(ledger, name):
    """What the balance says is left, and the ledger grants, and not one more."""
    left = ledger.balance(name).remaining
    with pytest.raises(BudgetExceeded) as refused:
        await ledger.hold(ask(f"too-much-{name}", left + 1, name))
    assert refused.value.left == left
    return left


# Top-ups


async def test_a_top_up_raises_the_cap_and_leaves_a_trace(ledger, engine):
    await configure(ledger, account(cap=100, top_ups=[top_up()]))
    balance = ledger.balance(ROOT)
    assert (balance.cap, balance.topped_up) == (150, 50)
    await spend(ledger, "1", 150)
    assert await room(ledger, ROOT) == 0
    rows = engine.query("SELECT kind, account, period, amount, granted_by, reason FROM transfers")
    assert rows == [("top-up", ROOT, "2026-11", 50, "ada", "the launch")]


async def test_a_top_up_ends_when_it_expires_though_nothing_happens(ledger, clock):
    expires = clock.now + timedelta(days=1)
    levels = ((80, Action.DOWNGRADE_MODELS),)
    await configure(ledger, account(cap=100, top_ups=[top_up(expires=expires)], thresholds=levels))
    await spend(ledger, "1", 100)
    assert ledger.balance(ROOT).level == 0
    stream = ledger.subscribe()
    assert (await anext(stream)).topped_up_nano == 50
    assert isinstance(await anext(stream), SnapshotEvent)
    clock.now = expires
    event = await asyncio.wait_for(anext(stream), 10)
    assert isinstance(event, BalanceEvent)
    assert (event.cap_nano, event.topped_up_nano, event.level) == (100, 0, 1)
    await stream.aclose()
    assert await room(ledger, ROOT) == 0


async def test_a_top_up_is_for_the_month_in_which_it_came(ledger, clock):
    await configure(ledger, account(cap=100, top_ups=[top_up()]))
    clock.now = DECEMBER
    await ledger.tick()
    assert ledger.balance(ROOT).cap == 100
    await configure(ledger, account(cap=100, top_ups=[top_up()]), generation=2)
    assert ledger.balance(ROOT).cap == 100, "the same id is no new money"
    both = [top_up(), top_up("december", 7)]
    await configure(ledger, account(cap=100, top_ups=both), generation=3)
    assert ledger.balance(ROOT).cap == 107


async def test_a_top_up_counts_once_whatever_becomes_of_its_budget(ledger):
    await configure(ledger, account(cap=100, top_ups=[top_up()]))
    await configure(ledger, account("llm/other"), generation=2)
    with pytest.raises(UnknownAccount):
        await ledger.hold(ask("1"))
    dearer = [top_up(amount=5000)]
    await configure(ledger, account(cap=100, top_ups=dearer), generation=3)
    assert ledger.balance(ROOT).cap == 150, "as it was granted"
    await configure(ledger, account(cap=100), generation=4)
    assert ledger.balance(ROOT).cap == 100, "taken back"


async def test_a_top_up_that_came_too_late_is_none(ledger, clock, engine):
    await configure(ledger, account(cap=100, top_ups=[top_up(expires=clock.now)]))
    assert ledger.balance(ROOT).cap == 100
    assert engine.count("transfers") == 0


@pytest.mark.parametrize("amount", [0, -5])
async def test_a_top_up_of_nothing_or_less_is_refused(ledger, amount):
    bad = top_up().model_copy(update={"amount_nano": amount})
    with pytest.raises(ValueError, match="top-up launch must be"):
        await configure(ledger, account(cap=100).model_copy(update={"top_ups": (bad,)}))


async def test_top_ups_beyond_what_a_column_holds_do_not_stop_the_ledger(ledger, clock, engine):
    """The most that a budget may say, 33 times, is more than 2**63 nano-USD."""
    most = 10**18 - 10**9
    granted = [top_up(f"{number}", most) for number in range(32)]
    steps = ((1, Action.NOTIFY_ADMIN),)
    child = account(A, most, ROOT, steps, top_ups=granted)
    await configure(ledger, account(ROOT, None), child)
    await spend(ledger, "1", 4 * 10**17, A)
    assert ledger.balance(A).cap == 33 * most
    assert engine.query("SELECT cap FROM actions") == [(2**62,)], "as much as is counted"
    clock.now = DECEMBER
    await ledger.tick()
    await spend(ledger, "2", 1)
    assert (ledger.balance(A).cap, ledger.balance(A).spent) == (most, 0)


# Rollover


async def test_unused_money_is_carried_up_to_the_maximum(ledger, clock, engine):
    await configure(ledger, account(cap=100, rollover_nano=30))
    await spend(ledger, "1", 80)
    clock.now = DECEMBER
    await ledger.tick()
    balance = ledger.balance(ROOT)
    assert (balance.cap, balance.rolled_over, balance.spent) == (120, 20, 0)
    clock.now = JANUARY
    await ledger.tick()
    assert ledger.balance(ROOT).cap == 130, "never more than the maximum"
    assert engine.query("SELECT kind, period, amount, source FROM transfers ORDER BY period") == [
        ("rollover", "2026-12", 20, "2026-11"),
        ("rollover", "2027-01", 30, "2026-12"),
    ]


async def test_what_is_held_when_the_month_turns_is_not_carried(ledger, clock):
    await configure(ledger, account(cap=100, rollover_nano=100))
    await ledger.hold(ask("late", 60))
    clock.now = DECEMBER
    await ledger.tick()
    await ledger.release("late")
    assert ledger.balance(ROOT).cap == 140


async def test_what_was_carried_away_covers_no_late_overage(ledger, clock):
    await configure(ledger, account(cap=100, rollover_nano=100))
    await ledger.hold(ask("late", 10))
    clock.now = DECEMBER
    await ledger.tick()
    await ledger.settle("late", Settlement(Nano(25)))
    balance = ledger.balance(ROOT)
    assert (balance.cap, balance.spent) == (190, 15)


async def test_top_ups_are_not_carried(ledger, clock):
    await configure(ledger, account(cap=100, rollover_nano=500, top_ups=[top_up()]))
    clock.now = DECEMBER
    await ledger.tick()
    assert ledger.balance(ROOT).cap == 200


async def test_a_budget_that_is_left_out_while_months_turn_is_carried_by_its_last_terms(
    ledger, clock
):
    root, left_out = account(ROOT, 1000), account(A, 100, ROOT, rollover_nano=90)
    await configure(ledger, root, left_out, account(B, 100, ROOT))
    await spend(ledger, "1", 30, A)
    await configure(ledger, root, generation=2)
    clock.now = DECEMBER
    await ledger.tick()
    await configure(ledger, root, left_out, account(B, 100, ROOT), generation=3)
    assert (ledger.balance(A).rolled_over, ledger.balance(A).cap) == (70, 170)
    assert ledger.balance(B).cap == 100, "it has no rollover"
    await configure(ledger, root, generation=4)
    clock.now = JANUARY
    await ledger.tick()
    await configure(ledger, root, left_out, generation=5)
    assert ledger.balance(A).rolled_over == 90, "never more than the maximum"


# Lending


async def test_siblings_lend_what_is_idle_within_the_parents_cap(ledger):
    await configure(
        ledger,
        account(ROOT, 220),
        account(A, 100, ROOT, borrowing=lending(80)),
        account(B, 100, ROOT, borrowing=lending(0, 60)),
        account(C, 100, ROOT),
    )
    assert await room(ledger, A) == 160
    assert await room(ledger, C) == 100, "it takes no part"
    await spend(ledger, "1", 150, A)
    lender, borrower = ledger.balance(B), ledger.balance(A)
    assert (borrower.borrowed, borrower.remaining) == (50, 10)
    assert (lender.lent, lender.remaining) == (50, 50)
    await ledger.hold(ask("2", 30, B))
    assert await room(ledger, A) == 10
    with pytest.raises(BudgetExceeded) as refused:
        await ledger.hold(ask("3", 41, C))
    assert refused.value.account == ROOT


async def test_a_lender_gets_back_what_is_neither_spent_nor_held(ledger):
    await configure(
        ledger,
        account(ROOT, 1000),
        account(A, 100, ROOT, borrowing=lending(100)),
        account(B, 100, ROOT, borrowing=lending(0)),
    )
    await ledger.hold(ask("1", 180, A))
    with pytest.raises(BudgetExceeded) as refused:
        await ledger.hold(ask("2", 90, B))
    assert refused.value.only_held, "it may be let go"
    await ledger.settle("1", Settlement(Nano(110)))
    await spend(ledger, "2", 90, B)
    assert await room(ledger, A) == 0
    assert await room(ledger, B) == 0


async def test_loans_end_with_the_month_and_what_was_lent_is_not_carried(ledger, clock):
    await configure(
        ledger,
        account(ROOT, 1000),
        account(A, 100, ROOT, borrowing=lending(100)),
        account(B, 100, ROOT, borrowing=lending(0), rollover_nano=100),
    )
    await spend(ledger, "1", 130, A)
    clock.now = DECEMBER
    await ledger.tick()
    assert ledger.balance(A).spent == 0, "a loan is no debt"
    assert ledger.balance(B).cap == 170


WITHOUT: dict[str, tuple[AccountConfig, ...]] = {
    "the borrower is deleted": (account(B, 100, ROOT, borrowing=lending(0), rollover_nano=500),),
    "the borrower's borrowing is removed": (
        account(A, 100, ROOT),
        account(B, 100, ROOT, borrowing=lending(0), rollover_nano=500),
    ),
    "the borrower's limit is lowered": (
        account(A, 100, ROOT, borrowing=lending(5)),
        account(B, 100, ROOT, borrowing=lending(0), rollover_nano=500),
    ),
    "the lender's borrowing is removed": (
        account(A, 100, ROOT, borrowing=lending(80)),
        account(B, 100, ROOT, rollover_nano=500),
    ),
    "the lender's limit is lowered": (
        account(A, 100, ROOT, borrowing=lending(80)),
        account(B, 100, ROOT, borrowing=lending(0, 10), rollover_nano=500),
    ),
    "the borrower moves": (
        account(A, 100, C, borrowing=lending(80)),
        account(B, 100, ROOT, borrowing=lending(0), rollover_nano=500),
    ),
    "the lender moves": (
        account(A, 100, ROOT, borrowing=lending(80)),
        account(B, 100, C, borrowing=lending(0), rollover_nano=500),
    ),
}


@pytest.mark.parametrize("change", WITHOUT)
async def test_what_was_lent_and_spent_does_not_come_back_to_the_lender(
    ledger, clock, engine, change
):
    rest = account(ROOT, 1000), account(C, 100, ROOT)
    before = (
        account(A, 100, ROOT, borrowing=lending(80)),
        account(B, 100, ROOT, borrowing=lending(0), rollover_nano=500),
    )
    await configure(ledger, *rest, *before)
    await spend(ledger, "1", 130, A)
    await ledger.hold(ask("2", 20, A))
    assert ledger.balance(B).lent == 50
    for generation in (2, 3):  # The second of two gateways says the same once more.
        await configure(ledger, *rest, *WITHOUT[change], generation=generation)
    assert ledger.balance(B).lent == 50
    assert await room(ledger, B) == 50
    await ledger.release("2")
    assert ledger.balance(B).lent == 30, "what was only held comes back"
    await ledger.close()
    ledger = await engine.open()
    assert await room(ledger, B) == 70
    clock.now = DECEMBER
    await ledger.tick()
    assert ledger.balance(B).rolled_over == 70, "what was lent and spent is not carried"
    assert ledger.balance(B).lent == 0
    assert await room(ledger, B) == 170
    await ledger.close()


async def test_a_budget_that_is_gone_lends_nothing_new(ledger):
    terms = {"borrowing": lending(500)}
    await configure(ledger, account(ROOT), account(A, 100, ROOT, **terms), account(B, 100, ROOT))
    await configure(
        ledger,
        account(ROOT, 1000),
        account(A, 100, ROOT, **terms),
        account(B, 100, ROOT, **terms),
        generation=2,
    )
    await ledger.hold(ask("1", 130, A))
    await configure(ledger, account(ROOT, 1000), account(A, 100, ROOT, **terms), generation=3)
    assert await room(ledger, A) == 0, "30 of it are lent, and no more"
    back = account(ROOT, 1000), account(A, 100, ROOT, **terms), account(B, 100, ROOT)
    await configure(ledger, *back, generation=4)
    assert await room(ledger, B) == 70


async def test_overage_that_nobody_lent_opens_the_next_month(ledger, clock):
    """Of 70 beyond its own money, 20 are a loan. The lender guarantees the rest to itself."""
    await configure(
        ledger,
        account(ROOT, 1000),
        account(A, 100, ROOT, borrowing=lending(80)),
        account(B, 100, ROOT, borrowing=lending(0, 20)),
    )
    await spend(ledger, "1", 170, A, held=100)
    assert (ledger.balance(A).borrowed, ledger.balance(B).lent) == (20, 20)
    assert await room(ledger, B) == 80
    clock.now = DECEMBER
    await ledger.tick()
    assert (ledger.balance(A).spent, ledger.balance(B).spent) == (50, 0)


async def test_who_asked_for_a_loan_has_it_before_who_was_charged_beyond_holds(ledger, clock):
    terms = {"borrowing": lending(80)}
    await configure(
        ledger,
        account(ROOT, 1000),
        *(account(name, 100, ROOT, **terms) for name in (A, C)),
        account(B, 100, ROOT, borrowing=lending(0, 40)),
    )
    await spend(ledger, "1", 130, C)
    await spend(ledger, "2", 150, A, held=100)
    assert (ledger.balance(A).borrowed, ledger.balance(C).borrowed) == (10, 30)
    clock.now = DECEMBER
    await ledger.tick()
    assert (ledger.balance(A).spent, ledger.balance(C).spent) == (40, 0)


async def test_a_lender_that_is_charged_beyond_holds_has_lent_all_the_same(ledger, clock):
    await configure(
        ledger,
        account(ROOT, 1000),
        account(A, 10, ROOT, borrowing=lending(50)),
        account(B, 100, ROOT, borrowing=lending(0)),
    )
    await spend(ledger, "1", 60, A)
    await spend(ledger, "2", 100, B, held=50)
    assert (ledger.balance(A).borrowed, ledger.balance(B).lent) == (50, 50)
    clock.now = DECEMBER
    await ledger.tick()
    assert (ledger.balance(A).spent, ledger.balance(B).spent) == (0, 50), "160 of 110"


async def test_a_debit_that_comes_late_takes_no_loan_away(ledger, clock):
    await configure(
        ledger,
        account(ROOT, 1000),
        account(A, 10, ROOT, borrowing=lending(50)),
        account(B, 100, ROOT, borrowing=lending(0)),
    )
    await ledger.hold(ask("late", 100, B))
    clock.now = DECEMBER
    await ledger.tick()
    await spend(ledger, "1", 60, A)
    await ledger.settle("late", Settlement(Nano(180)))
    assert ledger.balance(B).spent == 80
    clock.now = JANUARY
    await ledger.tick()
    assert (ledger.balance(A).spent, ledger.balance(B).spent) == (0, 30), "140 of 110"


@pytest.mark.parametrize("cap", [10, None])
@pytest.mark.parametrize("changed", [A, B])
async def test_a_cap_that_was_changed_for_a_while_changes_no_loan(ledger, clock, cap, changed):
    terms = {A: lending(50), B: lending(0)}
    await configure(
        ledger,
        account(ROOT, None),
        *(account(name, 100, ROOT, borrowing=terms[name]) for name in terms),
    )
    await spend(ledger, "1", 150, A)
    between = [
        account(name, cap if name == changed else 100, ROOT, borrowing=terms[name])
        for name in terms
    ]
    await configure(ledger, account(ROOT, None), *between, generation=2)
    without = [account(name, 100, ROOT, rollover_nano=100) for name in terms]
    await configure(ledger, account(ROOT, None), *without, generation=3)
    assert (ledger.balance(A).borrowed, ledger.balance(B).lent) == (50, 50)
    assert await room(ledger, B) == 50
    clock.now = DECEMBER
    await ledger.tick()
    assert ledger.balance(B).rolled_over == 50


async def test_what_was_given_back_is_not_lent_anew_by_former_terms(ledger, engine):
    lender = account(B, 100, ROOT, borrowing=lending(0))
    await configure(
        ledger, account(ROOT, None), account(A, 10, ROOT, borrowing=lending(50)), lender
    )
    await ledger.hold(ask("1", 30, A))
    await ledger.hold(ask("2", 30, A))
    without = account(ROOT, None), account(A, 10, ROOT), account(B, 100, ROOT)
    await configure(ledger, *without, generation=2)
    await ledger.release("1")
    assert (ledger.balance(A).borrowed, ledger.balance(B).lent) == (20, 20)
    assert await room(ledger, A) == 0
    await ledger.release("2")
    assert await room(ledger, A) == 10
    assert await room(ledger, B) == 100
    assert engine.query("SELECT loan FROM accounts WHERE loan IS NOT NULL") == []


async def test_who_moved_lends_nothing_to_others_where_it_was(ledger):
    rest = account(ROOT, None), account("llm/new", None)
    others = (
        account(A, 10, ROOT, borrowing=lending(50)),
        account(C, 0, ROOT, borrowing=lending(50)),
    )
    await configure(ledger, *rest, *others, account(B, 100, ROOT, borrowing=lending(0)))
    await ledger.hold(ask("1", 60, A))
    moved = account(B, 100, "llm/new", borrowing=lending(0))
    await configure(ledger, *rest, *others, moved, generation=2)
    assert await room(ledger, C) == 0
    stream = ledger.subscribe()
    while not isinstance(await anext(stream), SnapshotEvent):
        pass
    await ledger.release("1")
    seen = {event.account: event for event in [await anext(stream) for _ in range(4)]}
    assert seen[B].lent_nano == 0, "it is told though it borrows of nobody there any more"
    await stream.aclose()
    assert await room(ledger, C) == 10, "of what is A's"
    assert await room(ledger, B) == 100


async def test_who_moved_borrows_where_it_is_once_all_is_given_back(ledger):
    rest = account(ROOT, None), account("llm/new", None)
    others = (
        account(B, 100, ROOT, borrowing=lending(0)),
        account(C, 1000, "llm/new", borrowing=lending(0)),
    )
    await configure(ledger, *rest, *others, account(A, 10, ROOT, borrowing=lending(50)))
    await ledger.hold(ask("1", 11, A))
    moved = account(A, 10, "llm/new", borrowing=lending(50))
    await configure(ledger, *rest, *others, moved, generation=2)
    await ledger.release("1")
    await spend(ledger, "2", 60, A)
    assert (ledger.balance(B).lent, ledger.balance(C).lent) == (0, 50)


class EmptyShelf:
    """Of a book that was never written: all that it knows is in memory."""

    def _nothing(self, *_):
        return None

    def _none(self, *_):
        return []

    figures = entry = key = action = envelope = transfer = cursor = _nothing
    actions = accounts_in = older = _none


TERMS = st.none() | st.tuples(st.sampled_from([0, 30, 90]), st.sampled_from([None, 0, 30, 90]))
SIDE = st.tuples(st.sampled_from([10, 100, 100]), TERMS)
STEPS = st.lists(
    st.tuples(st.sampled_from([A, B]), st.sampled_from([20, 100, 120]))
    | st.fixed_dictionaries({}, optional={A: SIDE, B: SIDE})
    | st.integers(0, 8),
    max_size=9,
)


@settings(max_examples=800, derandomize=True)
@given(steps=STEPS)
def test_terms_may_change_at_any_time_and_no_money_is_there_twice(steps):
    """Two budgets of at most 100, whatever their terms, or gone: never more than 200."""
    book = Book(EmptyShelf(), Clock(), Header(1, 0, None, "UTC", "UTC"), [], [], [], 0)
    everything = {A: (100, (50, None)), B: (100, (50, None))}
    for number, step in enumerate([everything, *steps]):
        if isinstance(step, dict):
            present = [
                account(name, cap, borrowing=terms and lending(*terms))
                for name, (cap, terms) in step.items()
            ]
            book.configure(present, time_zone="UTC", generation=number)
        elif isinstance(step, int):
            if f"{step}" in book.holds:
                book.release(f"{step}")
        else:
            with contextlib.suppress(BudgetExceeded, UnknownAccount):
                book.hold(ask(f"{number}", step[1], step[0]))
        assert sum(hold.amount for hold in book.holds.values()) <= 200


async def test_followers_see_both_sides_of_a_loan(ledger):
    await configure(
        ledger,
        account(ROOT, None),
        account(A, 100, ROOT, borrowing=lending(100)),
        account(B, 100, ROOT, borrowing=lending(0)),
    )
    stream = ledger.subscribe()
    while not isinstance(await anext(stream), SnapshotEvent):
        pass
    await ledger.hold(ask("1", 120, A))
    seen = {event.account: event for event in [await anext(stream) for _ in range(3)]}
    assert (seen[A].borrowed_nano, seen[B].lent_nano) == (20, 20)
    await stream.aclose()


# The tree


async def test_an_account_keeps_its_history_wherever_it_comes_back(ledger):
    await configure(ledger, account(ROOT, 500), account(B, 500, ROOT), account(A, 100, ROOT))
    await spend(ledger, "1", 60, A)
    await configure(ledger, account(ROOT, 500), account(B, 500, ROOT), generation=2)
    with pytest.raises(UnknownAccount):
        await ledger.hold(ask("2", 1, A))
    await configure(
        ledger, account(ROOT, 500), account(B, 500, ROOT), account(A, 100, B), generation=3
    )
    assert (ledger.balance(A).spent, ledger.balance(B).spent) == (60, 0)
    assert await room(ledger, A) == 40
    await spend(ledger, "3", 40, A)
    assert [ledger.balance(name).spent for name in (A, B, ROOT)] == [100, 40, 100]


async def test_an_account_that_goes_under_a_hold_is_charged_all_the_same(ledger):
    await configure(ledger, account(ROOT, 500), account(A, 100, ROOT))
    await ledger.hold(ask("1", 60, A))
    await configure(ledger, account(ROOT, 500), generation=2)
    entry = await ledger.settle("1", Settlement(Nano(50)))
    assert (entry.account, entry.cost) == (A, 50)
    assert (ledger.balance(ROOT).spent, ledger.balance(ROOT).held) == (50, 0)
    await configure(ledger, account(ROOT, 500), account(A, 100, ROOT), generation=3)
    assert ledger.balance(A).spent == 50


async def test_a_cap_below_what_is_spent_only_blocks(ledger):
    await configure(ledger, account(ROOT, 100))
    await spend(ledger, "1", 60)
    await ledger.hold(ask("2", 20))
    await configure(ledger, account(ROOT, 10), generation=2)
    balance = ledger.balance(ROOT)
    assert (balance.cap, balance.spent, balance.held, balance.remaining) == (10, 60, 20, 0)
    assert await room(ledger, ROOT) == 0
    await ledger.settle("2", Settlement(Nano(20)))
    assert ledger.balance(ROOT).spent == 80


@pytest.mark.parametrize(
    ("zone", "last", "first"),
    [
        # Clocks are put back on 1 November: the month has an hour more.
        ("America/New_York", "2026-11-01T03:59:59", "2026-11-01T04:00:00"),
        ("America/New_York", "2026-12-01T04:59:59", "2026-12-01T05:00:00"),
        # Summer time is in force when April begins, and not when November does.
        ("Europe/Berlin", "2026-03-31T21:59:59", "2026-03-31T22:00:00"),
        ("Europe/Berlin", "2026-10-31T22:59:59", "2026-10-31T23:00:00"),
        # It was midnight twice on 1 November 2026 in Havana: the month begins with the first.
        ("America/Havana", "2026-11-01T03:59:59", "2026-11-01T04:00:00"),
        # There is no midnight on 1 October 1989 in Asuncion: the month begins at one.
        ("America/Asuncion", "1989-10-01T03:59:59", "1989-10-01T04:00:00"),
    ],
)
async def test_months_turn_by_the_zones_clock_summer_time_or_not(ledger, clock, zone, last, first):
    def at(instant: str) -> datetime:
        return datetime.fromisoformat(instant).replace(tzinfo=UTC)

    clock.now = at(last)
    await configure(ledger, account(), time_zone=zone)
    before = ledger.balance(ROOT).period
    await ledger.hold(ask("1", 10))
    clock.now = at(first)
    await ledger.tick()
    after = ledger.balance(ROOT).period
    assert (before.end.astimezone(UTC), after.start.astimezone(UTC)) == (at(first), at(first))
    assert after.name > before.name
    assert (await ledger.settle("1", Settlement(Nano(10)))).period == before.name
    assert ledger.balance(ROOT).spent == 0


async def test_what_was_lent_of_a_top_up_that_ends_is_not_there_twice(ledger, clock):
    expires = clock.now + timedelta(hours=1)
    await configure(
        ledger,
        account(ROOT, None),
        account(A, 100, ROOT, borrowing=lending(0), top_ups=[top_up(expires=expires)]),
        account(B, 0, ROOT, borrowing=lending(150)),
    )
    await spend(ledger, "lent", 120, B)
    assert (await room(ledger, A), await room(ledger, B)) == (30, 30)
    clock.now = expires
    await ledger.tick()
    for name in (A, B):
        with pytest.raises(BudgetExceeded):
            await ledger.hold(ask(f"more {name}", 1, name))
    assert ledger.balance(A).lent == 100


async def test_a_clock_that_is_put_back_expires_a_top_up_again(ledger, clock):
    expires = clock.now + timedelta(hours=1)
    await configure(
        ledger,
        account(ROOT, None),
        account(A, 100, ROOT, borrowing=lending(0), top_ups=[top_up(expires=expires)]),
    )
    for minutes, left in ((0, 150), (70, 100), (-120, 150), (120, 100)):
        clock.now += timedelta(minutes=minutes)
        await ledger.tick()
        with pytest.raises(BudgetExceeded) as refused:
            await ledger.hold(ask(f"{minutes}", 151, A))
        assert refused.value.left == left
