"""What people are told: whose budget, how much of it, and what happens now."""

from __future__ import annotations

import pytest

from llmbudget.api.budget import Action
from llmbudget.contract.events import ActionEvent
from llmbudget.notify.notice import RECIPIENTS, Notice, notice_of

KEYS = {"admin", "financeTeam", "executives", "regionalOwners", "onCall"}
"""Keys of the notifications Secret, as the LLMBudget's reference names them."""


def event(action: Action = Action.NOTIFY_ADMIN, **changes: object) -> ActionEvent:
    values: dict[str, object] = {
        "id": "ns/team:2026-11:80",
        "account": "ns/team",
        "period": "2026-11",
        "percentage": 80,
        "action": action,
        "spent_nano": 80_500_000_001,
        "cap_nano": 100_000_000_000,
        "fired_at": "2026-11-23T12:00:00Z",
        "acknowledged": False,
        "seq": 7,
    }
    return ActionEvent.model_validate(values | changes)


@pytest.fixture(params=list(Action))
def action(request: pytest.FixtureRequest) -> Action:
    found: Action = request.param
    return found


def test_every_action_has_recipients_that_a_secret_can_name(action: Action) -> None:
    recipients = notice_of(event(action)).recipients
    assert recipients
    assert set(recipients) <= KEYS
    assert len(set(recipients)) == len(recipients)


def test_every_notice_says_whose_budget_and_how_much_of_it(action: Action) -> None:
    notice = notice_of(event(action))
    assert notice.title == "LLM budget ns/team: 80 % of 2026-11 spent"
    said = "Budget ns/team has spent 80.500000001 USD of its 100.00 USD for 2026-11"
    assert notice.body.startswith(said)
    for part in ("80 %", "2026-11-23T12:00:00Z", f"Action: {action.value}."):
        assert part in notice.body


def test_every_notice_ends_with_what_happens_now(action: Action) -> None:
    _, _, effect = notice_of(event(action)).body.partition(f"Action: {action.value}. ")
    assert effect.endswith(".")
    assert not {"{", "}"} & set(effect)
    changes = {
        Action.EXECUTIVE_INTERVENTION: "Calls are stopped",
        Action.DOWNGRADE_MODELS: "cheaper model",
        Action.ENFORCE_STRICT_DOWNGRADE: "cheapest model",
        Action.CROSS_REGION_REVIEW: "review",
    }
    assert changes.get(action, "Nothing else changes.") in effect


def test_an_intervention_says_how_to_approve_which_period() -> None:
    notice = notice_of(event(Action.EXECUTIVE_INTERVENTION, period="2027-02"))
    assert "llmbudget.io/approved-period=2027-02" in notice.body
    assert "2026" not in notice.title


def test_whoever_can_end_a_block_is_told_of_it() -> None:
    assert {"executives", "onCall"} <= set(RECIPIENTS[Action.EXECUTIVE_INTERVENTION])


def test_names_with_braces_are_only_text() -> None:
    notice = notice_of(event(account="ns/{period}"))
    assert "ns/{period}" in notice.body


def test_amounts_beyond_what_a_float_holds_are_exact() -> None:
    notice = notice_of(event(spent_nano="9007199254740993", cap_nano="999999999999999999"))
    assert "9007199.254740993 USD of its 999999999.999999999 USD" in notice.body


def test_the_same_event_gives_the_same_notice(action: Action) -> None:
    first, again = notice_of(event(action)), notice_of(event(action, seq=8))
    assert isinstance(first, Notice)
    assert first == again
