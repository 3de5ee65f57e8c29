"""Lending among siblings: what is lent is what is borrowed, and nobody loses what it kept."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmbudget.decide.lending import Cohort, Loans, Member

AMOUNTS = st.integers(0, 100)
MEMBERS = st.builds(
    Member,
    own=AMOUNTS,
    used=st.just(0),
    limit=AMOUNTS,
    lending_limit=AMOUNTS | st.none(),
)


def member(own: int = 100, used: int = 0, limit: int = 50, lends: int | None = None) -> Member:
    return Member(own, used, limit, lends)


def test_an_idle_sibling_lends_up_to_the_borrowers_limit() -> None:
    cohort = Cohort({"a": member(used=100), "b": member()})
    assert (cohort.room("a"), cohort.room("b")) == (50, 100)


def test_the_lending_limit_keeps_the_rest() -> None:
    cohort = Cohort({"a": member(limit=500), "b": member(lends=30)})
    assert cohort.room("a") == 130
    assert Cohort({"a": member(used=130, limit=500), "b": member(lends=30)}).room("b") == 70


def test_what_is_not_used_comes_back_at_once() -> None:
    borrowed = {"a": member(used=150), "b": member()}
    assert Cohort(borrowed).room("b") == 50
    given_back = borrowed | {"a": member(used=110)}
    assert Cohort(given_back).room("b") == 90


def test_another_lender_takes_a_loan_over() -> None:
    cohort = Cohort({"a": member(used=150), "b": member(used=50), "c": member()})
    assert cohort.room("b") == 100, "50 of its own, as c lends now, and 50 that it may borrow"


def test_borrowing_nothing_is_lending_only() -> None:
    cohort = Cohort({"a": member(limit=0), "b": member(used=100)})
    assert (cohort.room("a"), cohort.room("b")) == (100, 50)


def test_a_debt_beyond_all_limits_takes_nothing_of_the_others() -> None:
    cohort = Cohort({"a": member(used=400), "b": member()})
    assert cohort.room("a") < 0
    assert cohort.room("b") == 50
    assert cohort.loans == {"a": Loans(borrowed=50), "b": Loans(lent=50)}


def test_a_lowered_cap_leaves_the_guaranteed_part() -> None:
    cohort = Cohort({"a": member(used=150), "b": member(own=10, lends=4)})
    assert cohort.room("b") == 6


def test_loans_are_shared_by_what_is_idle() -> None:
    cohort = Cohort({"a": member(used=130), "b": member(used=80), "c": member(used=90)})
    assert cohort.loans == {"a": Loans(borrowed=30), "b": Loans(lent=20), "c": Loans(lent=10)}


@given(members=st.lists(MEMBERS, min_size=1, max_size=5), data=st.data())
def test_money_is_conserved_and_every_limit_holds(
    members: list[Member], data: st.DataObject
) -> None:
    """Grant at random within the rooms, let go at random: see that it never was too much."""
    state = {str(number): each for number, each in enumerate(members)}
    for _ in range(12):
        name = data.draw(st.sampled_from(sorted(state)))
        room = Cohort(state).room(name)
        assert room >= 0
        used = state[name].used + data.draw(st.integers(-state[name].used, room))
        state[name] = replace(state[name], used=used)
        loans = Cohort(state).loans
        assert sum(loan.borrowed for loan in loans.values()) == sum(
            loan.lent for loan in loans.values()
        )
        assert sum(each.used for each in state.values()) <= sum(each.own for each in state.values())
        for which, each in state.items():
            loan = loans[which]
            assert each.used + loan.lent <= each.own + loan.borrowed, "I1"
            assert loan.borrowed <= each.limit
            assert each.lending_limit is None or loan.lent <= each.lending_limit
            assert Cohort(state).room(which) >= each.guaranteed - each.used
