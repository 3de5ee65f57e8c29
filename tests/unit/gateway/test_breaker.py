"""The circuit breaker: a provider that keeps failing is left alone, and found again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.gateway.breaker import FAILURES, PAUSE_SECONDS, TRIAL_SECONDS, Breaker


class Watch:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def breaker(watch: Watch) -> Breaker:
    return Breaker(watch)


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(trial=breaker.sending())


def test_failures_in_a_row_open_it(breaker: Breaker) -> None:
    fail(breaker, FAILURES - 1)
    assert breaker.wait() == 0
    fail(breaker)
    assert breaker.wait() == PAUSE_SECONDS[0]


def test_an_answer_between_keeps_it_closed(breaker: Breaker) -> None:
    for _ in range(5):
        fail(breaker, FAILURES - 1)
        breaker.answered()
    assert not breaker.open


def test_only_one_tries_again(breaker: Breaker, watch: Watch) -> None:
    fail(breaker, FAILURES)
    watch.now += PAUSE_SECONDS[0]
    assert breaker.wait() == 0
    assert breaker.sending()
    assert breaker.wait() == TRIAL_SECONDS
    breaker.answered()
    assert breaker.wait() == 0
    assert not breaker.sending()


def test_a_trial_that_never_ends_does_not_close_it_for_ever(breaker: Breaker, watch: Watch) -> None:
    fail(breaker, FAILURES)
    watch.now += PAUSE_SECONDS[0]
    breaker.sending()
    watch.now += TRIAL_SECONDS
    assert breaker.wait() == 0


def test_each_trial_that_fails_doubles_the_pause(breaker: Breaker, watch: Watch) -> None:
    fail(breaker, FAILURES)
    pauses = []
    for _ in range(8):
        pauses.append(breaker.wait())
        watch.now += breaker.wait()
        fail(breaker)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]


def test_calls_that_were_sent_before_it_opened_change_nothing(breaker: Breaker) -> None:
    sent = [breaker.sending() for _ in range(100)]
    for trial in sent:
        breaker.failed(trial=trial)
    assert breaker.wait() == PAUSE_SECONDS[0]


def test_an_answer_to_one_of_them_closes_it(breaker: Breaker) -> None:
    fail(breaker, FAILURES)
    breaker.answered()
    fail(breaker, FAILURES)
    assert breaker.wait() == PAUSE_SECONDS[0], "the pause starts anew"


@given(st.lists(st.sampled_from(["fails", "answers", "waits"]), max_size=60))
def test_it_is_never_closed_for_longer_than_the_longest_pause(steps: list[str]) -> None:
    watch = Watch()
    breaker = Breaker(watch)
    for step in steps:
        if step == "waits":
            watch.now += 1
        elif not breaker.wait():
            trial = breaker.sending()
            breaker.answered() if step == "answers" else breaker.failed(trial=trial)
        assert 0 <= breaker.wait() <= PAUSE_SECONDS[1]
    watch.now += PAUSE_SECONDS[1]
    assert breaker.wait() == 0
