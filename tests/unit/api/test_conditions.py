"""Conditions keep their transition time while their status stays."""

from __future__ import annotations

from typing import Literal

from llmbudget.api.conditions import Condition, ConditionType, Reason, merge_conditions

EARLY, NOW = "2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"


def condition(
    status: Literal["True", "False", "Unknown"], time: str = "", *, kind: str = "Ready"
) -> Condition:
    return Condition(
        type=kind, status=status, reason=Reason.RECONCILED, message="m", last_transition_time=time
    )


def test_a_new_condition_begins_now() -> None:
    assert merge_conditions([], [condition("True")], NOW) == [condition("True", NOW)]


def test_the_time_stays_while_the_status_stays() -> None:
    changed = condition("True").model_copy(update={"reason": Reason.PROGRESSING, "message": "n"})
    (merged,) = merge_conditions([condition("True", EARLY)], [changed], NOW)
    assert merged.last_transition_time == EARLY
    assert merged.reason == Reason.PROGRESSING
    assert merged.message == "n"


def test_the_time_changes_with_the_status() -> None:
    (merged,) = merge_conditions([condition("False", EARLY)], [condition("True")], NOW)
    assert merged.last_transition_time == NOW


def test_absent_conditions_disappear_and_the_order_is_the_new_one() -> None:
    before = [condition("True", EARLY, kind=kind) for kind in ("Stalled", "Ready", "Downgraded")]
    now = [condition("True", kind=kind) for kind in ("Downgraded", "Ready")]
    merged = merge_conditions(before, now, NOW)
    assert [each.type for each in merged] == ["Downgraded", "Ready"]
    assert {each.last_transition_time for each in merged} == {EARLY}


def test_merging_again_changes_nothing() -> None:
    once = merge_conditions([], [condition("True"), condition("False", kind="Stalled")], NOW)
    assert merge_conditions(once, once, "2026-12-01T00:00:00Z") == once


def test_names_fit_metav1_condition() -> None:
    for name in [*ConditionType, *Reason]:
        assert name.isalpha()
        assert name[0].isupper()
        assert len(name) <= 64
