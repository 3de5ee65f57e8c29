"""Thresholds follow settled spend, in integers."""

import pytest

from llmbudget.api.budget import Action
from llmbudget.contract.config import Threshold
from llmbudget.decide.thresholds import awaiting_approval, crossed, downgrade_level

NOTIFY = Threshold(percentage=80, action=Action.NOTIFY_ADMIN)
DOWN = Threshold(percentage=90, action=Action.DOWNGRADE_MODELS)
FURTHER = Threshold(percentage=95, action=Action.DOWNGRADE_MODELS)
STRICT = Threshold(percentage=95, action=Action.ENFORCE_STRICT_DOWNGRADE)
STOP = Threshold(percentage=100, action=Action.EXECUTIVE_INTERVENTION)


@pytest.mark.parametrize(
    ("spent", "cap", "expected"),
    [
        (0, 100, ()),
        (79, 100, ()),
        (80, 100, (NOTIFY,)),
        (89, 100, (NOTIFY,)),
        (90, 100, (NOTIFY, DOWN)),
        (10**18, 1, (NOTIFY, DOWN)),
        (79_999_999_999, 10**11, ()),
        (80_000_000_000, 10**11, (NOTIFY,)),
        (10**18, None, ()),
        (0, 0, (NOTIFY, DOWN)),
    ],
)
def test_crossed_exactly_at_the_percentage(spent, cap, expected):
    assert crossed((NOTIFY, DOWN), spent, cap) == expected


@pytest.mark.parametrize(
    ("reached", "steps", "level"),
    [
        ((), 3, 0),
        ((NOTIFY, STOP), 3, 0),
        ((DOWN,), 3, 1),
        ((DOWN, FURTHER), 3, 2),
        ((DOWN, FURTHER), 2, 1),
        ((STRICT,), 4, 3),
        ((DOWN, STRICT), 4, 3),
        ((DOWN,), 1, 0),
        ((DOWN,), 0, 0),
        ((STRICT,), 0, 0),
    ],
)
def test_level_stays_on_the_ladder(reached, steps, level):
    assert downgrade_level(reached, steps) == level


def test_intervention_waits_for_the_approval_of_this_period():
    assert awaiting_approval((STOP,), None, "2026-11")
    assert awaiting_approval((STOP,), "2026-10", "2026-11")
    assert not awaiting_approval((STOP,), "2026-11", "2026-11")
    assert not awaiting_approval((DOWN,), None, "2026-11")
