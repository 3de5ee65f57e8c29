"""What is said, and to whom: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmbudget.api.budget import Action
from llmbudget.api.money import format_usd
from llmbudget.contract.events import ActionEvent

RECIPIENTS: Final[Mapping[Action, tuple[str, ...]]] = {
    Action.NOTIFY_ADMIN: ("admin",),
    Action.NOTIFY_FINANCE_TEAM: ("financeTeam",),
    Action.NOTIFY_EXECUTIVES: ("executives",),
    Action.REGIONAL_ALERT: ("regionalOwners",),
    Action.CROSS_REGION_REVIEW: ("regionalOwners", "admin"),
    Action.EXECUTIVE_INTERVENTION: ("executives", "onCall"),
    Action.DOWNGRADE_MODELS: ("admin",),
    Action.ENFORCE_STRICT_DOWNGRADE: ("admin", "onCall"),
}
"""Keys of the notifications Secret, by action."""

_EFFECTS: Final[Mapping[Action, str]] = {
    Action.EXECUTIVE_INTERVENTION: (
        "Calls are stopped until someone with the verb approve annotates the budget"
        " llmbudget.io/approved-period={period}."
    ),
    Action.CROSS_REGION_REVIEW: "Please review the regions' spending together.",
    Action.DOWNGRADE_MODELS: "Calls go to the next cheaper model from now on.",
    Action.ENFORCE_STRICT_DOWNGRADE: "Calls go to the cheapest model of the ladder from now on.",
}
_OTHERWISE: Final = "Nothing else changes."


@dataclass(frozen=True, slots=True)
class Notice:
    """A message for people."""

    title: str
    body: str
    recipients: tuple[str, ...]


def notice_of(event: ActionEvent) -> Notice:
    """Write the notice of a crossed threshold."""
    spent, cap = format_usd(event.spent_nano), format_usd(event.cap_nano)
    effect = _EFFECTS.get(event.action, _OTHERWISE).format(period=event.period)
    return Notice(
        title=f"LLM budget {event.account}: {event.percentage} % of {event.period} spent",
        body=(
            f"Budget {event.account} has spent {spent} USD of its {cap} USD for {event.period}"
            f" and crossed {event.percentage} % at {event.fired_at}. Action: {event.action}."
            f" {effect}"
        ),
        recipients=RECIPIENTS[event.action],
    )
