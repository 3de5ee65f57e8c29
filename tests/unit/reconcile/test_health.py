"""A process that no longer hears what happens says so within a minute."""

from __future__ import annotations

from llmbudget.reconcile.health import DEAF_SECONDS, Health


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_renewal_that_its_watch_does_not_tell_of_is_a_problem() -> None:
    time = Time()
    health = Health(time)
    for _ in range(100):
        health.renewed()
        time.now += 2
        health.seen()
    assert health.problem() is None
    health.renewed()
    time.now += DEAF_SECONDS
    health.renewed()
    assert health.problem() is None
    time.now += 1
    assert "has not told so for 41 s" in (health.problem() or "")
    health.seen()
    assert health.problem() is None


def test_an_api_server_that_is_away_is_no_reason_to_start_again() -> None:
    time = Time()
    health = Health(time)
    health.renewed()
    health.seen()
    time.now += 3600
    assert health.problem() is None


def test_a_minute_is_enough() -> None:
    assert DEAF_SECONDS + 2 * 10 <= 60, "with two failures of a probe every ten seconds"
