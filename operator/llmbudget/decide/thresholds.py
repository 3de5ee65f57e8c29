"""Which thresholds are crossed, and what follows from them.

Everything here follows the state and not its history: when a cap is raised, a threshold is no
longer crossed, and the level falls again. What was done once a period (notices) is remembered by
the ledger, not here.

A cap of 0 has every threshold crossed from the start: there is nothing that may be spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from llmbudget.api.budget import Action
from llmbudget.contract.config import Threshold

STOPPING: Final = frozenset({Action.EXECUTIVE_INTERVENTION})
"""Actions that stop calls until somebody approves."""


def crossed(thresholds: Iterable[Threshold], spent: int, cap: int | None) -> tuple[Threshold, ...]:
    """Select the thresholds that settled spend has reached, in nano-USD; none without a cap."""
    if cap is None:
        return ()
    return tuple([each for each in thresholds if spent * 100 >= each.percentage * cap])


def downgrade_level(reached: Iterable[Threshold], steps: int) -> int:
    """Find the step of a ladder with `steps` models that is the ceiling; 0: no downgrade.

    Each downgrade moves it one step down, a strict one to the last; it never leaves the ladder.
    """
    last = max(0, steps - 1)
    actions = [threshold.action for threshold in reached]
    if Action.ENFORCE_STRICT_DOWNGRADE in actions:
        return last
    return min(last, actions.count(Action.DOWNGRADE_MODELS))


def awaiting_approval(
    reached: Sequence[Threshold], approved_period: str | None, period: str
) -> bool:
    """Tell whether an executive intervention stops calls: crossed, and this period not approved."""
    if not reached or approved_period == period:
        return False
    return any(threshold.action in STOPPING for threshold in reached)
