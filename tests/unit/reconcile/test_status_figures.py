"""A status's figures are the ledger's, exact, and stay while nobody tells new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.reconcile.status_helpers import (
    CHILD,
    ROOT,
    USD,
    balance,
    condition,
    situation,
    status_of,
)

from llmbudget.api.budget import Action
from llmbudget.contract.events import ActionEvent
from llmbudget.reconcile.status import active_model

AWAY = {"connected": False, "problem": "connection refused"}


def crossed(percentage: int, **changes: Any) -> ActionEvent:
    values: dict[str, Any] = {
        "id": f"{999 - percentage}-{changes}",
        "account": ROOT,
        "period": "2026-11",
        "percentage": percentage,
        "action": Action.NOTIFY_ADMIN,
        "spent_nano": 1,
        "cap_nano": 1,
        "fired_at": f"2026-11-{percentage // 10:02d}T00:00:00Z",
        "acknowledged": True,
        "seq": 1,
    }
    return ActionEvent.model_validate(values | changes)


def test_figures_are_those_of_the_ledger() -> None:
    status = status_of(situation(balance(lent_nano=USD // 4, level=1)))
    assert status["period"] == {
        "name": "2026-11",
        "start": "2026-11-01T00:00:00-04:00",
        "end": "2026-12-01T00:00:00-05:00",
    }
    expected = {"cap": "500.00", "spent": "100.00", "held": "1.50", "remaining": "398.25"}
    assert expected.items() <= status.items()
    assert (status["spentPercentage"], status["downgradeLevel"]) == ("20.0", 1)
    assert status["activeModel"] == "gpt-4o-mini"
    assert (status["observedGeneration"], status["thresholds"]) == (1, [])


def test_what_is_lent_borrowed_and_added_is_shown_where_there_is_some() -> None:
    moved = {
        "lent_nano": USD // 4,
        "borrowed_nano": 2 * USD,
        "topped_up_nano": 50 * USD,
        "rolled_over_nano": 10 * USD,
        "remaining_nano": 7 * USD,
    }
    status = status_of(situation(balance(**moved)))
    shown = {
        "lent": "0.25",
        "borrowed": "2.00",
        "toppedUp": "50.00",
        "rolledOver": "10.00",
        "remaining": "7.00",
    }
    assert shown.items() <= status.items()
    plain = status_of(situation(balance()))
    assert not {"lent", "borrowed", "toppedUp", "rolledOver"} & plain.keys()


def test_a_budget_that_may_borrow_is_not_exceeded() -> None:
    beyond = {"spent_nano": 510 * USD, "borrowed_nano": 10 * USD}
    borrowing = situation(balance(**beyond, remaining_nano=USD))
    assert status_of(borrowing)["phase"] == "Ready"
    assert status_of(situation(balance(**beyond, remaining_nano=0)))["phase"] == "Exceeded"


@pytest.mark.parametrize(
    ("cap", "spent", "held", "percentage", "remaining"),
    [
        (0, 0, 0, "100.0", "0.00"),
        (0, 5 * USD, 0, "100.0", "0.00"),
        (100 * USD, 0, 0, "0.0", "100.00"),
        (100 * USD, 99_999_999_999, 0, "99.9", "0.000000001"),
        (100 * USD, 100 * USD, 0, "100.0", "0.00"),
        (100 * USD, 96_100_000_000, 400_000_000, "96.1", "3.50"),
        (100 * USD, 60 * USD, 60 * USD, "60.0", "0.00"),
        (100 * USD, 150 * USD, 0, "150.0", "0.00"),
        (3, 1, 0, "33.3", "0.000000002"),
        (None, 5 * USD, USD, None, None),
    ],
)
def test_percentages_round_down_and_nothing_is_left_below_zero(
    cap: int | None, spent: int, held: int, percentage: str | None, remaining: str | None
) -> None:
    status = status_of(situation(balance(cap_nano=cap, spent_nano=spent, held_nano=held)))
    assert status.get("spentPercentage") == percentage
    assert status.get("remaining") == remaining
    assert ("cap" in status) == (cap is not None)


def test_figures_stay_while_the_gateway_is_silent_and_the_rest_is_new() -> None:
    before = status_of(situation(balance(level=1)))
    status = status_of(situation(gateway=AWAY), before=before | {"observedGeneration": 0})
    for key in ("period", "cap", "spent", "held", "remaining", "spentPercentage"):
        assert status[key] == before[key]
    for key in ("activeModel", "downgradeLevel", "thresholds"):
        assert status[key] == before[key]
    assert (status["phase"], status["observedGeneration"]) == ("Pending", 1)


def test_figures_of_a_cap_that_was_removed_go() -> None:
    before = status_of(situation(balance()))
    status = status_of(situation(balance(cap_nano=None)), before=before)
    assert not {"cap", "remaining", "spentPercentage"} & set(status)
    assert status["spent"] == "100.00"


def test_thresholds_of_this_account_and_period_are_listed_by_percentage() -> None:
    events = [crossed(95), crossed(80), crossed(90, account=CHILD), crossed(70, period="2026-10")]
    made = situation(balance(), gateway={"actions": {event.id: event for event in events}})
    assert status_of(made)["thresholds"] == [
        {"percentage": 80, "action": "notify_admin", "firedAt": "2026-11-08T00:00:00Z"},
        {"percentage": 95, "action": "notify_admin", "firedAt": "2026-11-09T00:00:00Z"},
    ]


class Notices(dict[str, ActionEvent]):
    """Counts how often all of them are gone through."""

    looks = 0

    def values(self) -> Any:
        self.looks += 1
        return super().values()


def test_a_trees_notices_are_gone_through_once_however_many_budgets_it_has() -> None:
    notices = Notices({event.id: event for event in (crossed(95), crossed(80, account=CHILD))})
    made = situation(balance(), balance(CHILD), gateway={"actions": notices})
    found = [status_of(made, account)["thresholds"][0]["percentage"] for account in (ROOT, CHILD)]
    assert found == [95, 80]
    assert notices.looks == 1


@pytest.mark.parametrize(
    ("level", "model"), [(0, "claude-3-sonnet"), (1, "gpt-4o-mini"), (2, "phi-4-14b")]
)
def test_the_active_model_is_the_ladders_first_one_lowered(level: int, model: str) -> None:
    made = situation(balance(level=level))
    assert active_model(made, ROOT) == model
    assert active_model(made, "no/such") is None
    assert active_model(replace(made, config=None), ROOT) is None


# Corners.

NO_LADDER = {"downgrade": None}


def test_a_cap_that_was_lowered_to_almost_nothing_still_has_a_status() -> None:
    status = status_of(situation(balance(cap_nano=1, spent_nano=1000 * USD)))
    assert status["phase"] == "Exceeded"


def test_where_no_step_is_on_offer_the_message_says_so() -> None:
    made = situation(balance(CHILD, level=2), child=NO_LADDER)
    found = condition(status_of(made, CHILD), "Downgraded")
    assert found is not None
    assert "None" not in found[2]


def test_a_childs_active_model_is_lowered_by_its_root() -> None:
    chosen = {"providers": [{"name": "requesty"}, {"name": "openrouter"}]}
    made = situation(balance(level=1), balance(CHILD), child=NO_LADDER | chosen)
    assert status_of(made, CHILD)["activeModel"] == "gpt-4o-mini"
