"""A burst goes through, and what goes on for ever is slowed down."""

from __future__ import annotations

import pytest

from llmbudget.decide.pace import Pace


def test_a_burst_waits_for_nothing_and_comes_again_after_a_rest() -> None:
    pace = Pace(burst=3, seconds=2.0)
    assert [pace.wait("a", 100.0) for _ in range(4)] == [0, 0, 0, 2]
    assert [pace.wait("a", 106.0) for _ in range(4)] == [0, 0, 0, 2]


def test_who_asks_all_the_time_waits_no_longer_for_it() -> None:
    pace = Pace(burst=3, seconds=2.0)
    now, went = 0.0, 0
    while now < 100.0:
        wait = pace.wait("a", now)
        went += wait == 0
        assert wait <= 2
        now += 0.125
    assert went == 3 + 100 / 2 - 1


def test_one_key_takes_nothing_from_another_and_begins_anew_when_forgotten() -> None:
    pace = Pace(burst=1, seconds=5.0)
    assert [pace.wait(key, 0.0) for key in ("a", "a", "b")] == [0, 5, 0]
    pace.forget("a")
    pace.forget("never heard of")
    assert pace.wait("a", 0.0) == 0
    assert pace.wait("b", 4.0) == pytest.approx(1.0)
