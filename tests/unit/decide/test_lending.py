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


def test_a_granted_loan_stands_though_its_lender_is_charged_beyond_holds() -> None:
    lender = Member(100, 100, 0, None, overage=50)
    assert Cohort({"a": member(10, 60), "b": lender}).loans["b"] == Loans(lent=50)
    in_debt = Member(100, 80, 0, None, overage=80)
    assert Cohort({"a": member(10, 60), "b": in_debt}).loans["a"] == Loans(borrowed=50)


def test_overage_is_lent_of_what_loans_and_overage_leave() -> None:
    lender = Member(100, 30, 0, None, overage=30)
    granted, beyond = member(10, 60), Member(10, 50, 50, None, overage=40)
    cohort = Cohort({"a": granted, "b": lender, "c": beyond})
    assert cohort.loans == {"a": Loans(50), "b": Loans(lent=70), "c": Loans(20)}


def is_over(state: dict[str, Member], name: str) -> bool:
    loan, one = Cohort(state).loans[name], state[name]
    return one.used + loan.lent > one.own + loan.borrowed


def test_a_lender_that_was_charged_beyond_holds_is_over_its_cap() -> None:
    lender = Member(100, 100, 0, None, overage=50)
    cohort = Cohort({"a": member(10, 60), "b": lender})
    assert cohort.room("b") == -50


def test_another_lends_in_place_of_one_that_was_charged_beyond_holds() -> None:
    lender = Member(100, 100, 0, None, overage=50)
    cohort = Cohort({"a": member(10, 60), "b": lender, "c": member(own=60)})
    assert cohort.loans == {"a": Loans(borrowed=50), "b": Loans(), "c": Loans(lent=50)}
    assert cohort.room("b") == 0


@given(members=st.lists(MEMBERS, min_size=1, max_size=4), data=st.data())
def test_what_is_spent_is_somebodys_or_a_debit(members: list[Member], data: st.DataObject) -> None:
    """Grant within the rooms, charge beyond holds at random: nothing beyond all caps is lost."""
    state = {str(number): each for number, each in enumerate(members)}
    for _ in range(8):
        name = data.draw(st.sampled_from(sorted(state)))
        asked = data.draw(st.integers(0, max(0, Cohort(state).room(name))))
        beyond = data.draw(st.sampled_from([0, 0, 1, 30, 60]))
        one = state[name]
        if asked:
            state[name] = replace(one, used=one.used + asked)
            loan = Cohort(state).loans[name]
            assert state[name].used + loan.lent <= one.own + loan.borrowed, "I1"
        state[name] = replace(
            state[name], used=one.used + asked + beyond, overage=one.overage + beyond
        )
        assert (Cohort(state).room(name) < 0) == is_over(state, name)
    loans = Cohort(state).loans
    for name, each in state.items():
        closing_cap = each.own + loans[name].borrowed - loans[name].lent
        assert closing_cap >= 0
        assert each.used - min(each.overage, max(0, each.used - closing_cap)) <= closing_cap
        assert each.lending_limit is None or loans[name].lent <= each.lending_limit
    assert sum(loan.borrowed for loan in loans.values()) == sum(
        loan.lent for loan in loans.values()
    )


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
