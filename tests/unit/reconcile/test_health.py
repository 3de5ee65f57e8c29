"""A process that no longer hears what happens says so within a minute."""

from __future__ import annotations

from typing import Any

import pytest

from llmbudget.reconcile.health import BEGIN_SECONDS, DEAF_SECONDS, Health
from llmbudget.reconcile.operator import _LOOK_SECONDS


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def versioned(version: int, namespace: str = "llm") -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "resourceVersion": str(version)}}


@pytest.mark.parametrize("kind", ["Lease", "LLMBudget", "LLMProvider"])
def test_a_write_that_its_watch_does_not_tell_of_is_a_problem(kind: str) -> None:
    time = Time()
    health = Health(clock=time)
    health.seen(kind, versioned(0))
    for version in range(1, 100):
        health.written(kind, versioned(version))
        time.now += 2
        health.seen(kind, versioned(version))
    assert health.problem() is None
    health.written(kind, versioned(100))
    time.now += DEAF_SECONDS
    health.written(kind, versioned(101))
    assert health.problem() is None
    time.now += 1
    assert health.problem() == f"{kind}: what is there has not been told by the watch for 26 s"
    health.seen(kind, versioned(101))
    assert health.problem() is None


def test_one_watch_does_not_speak_for_another() -> None:
    time = Time()
    health = Health(clusterwide=False, clock=time)
    for kind, namespace in (("LLMBudget", "llm"), ("LLMBudget", "elsewhere"), ("Lease", "llm")):
        health.seen(kind, versioned(6, namespace))
    health.written("LLMBudget", versioned(7))
    health.written("LLMBudget", versioned(8, "elsewhere"))
    time.now += DEAF_SECONDS + 1
    health.seen("Lease", versioned(9))
    health.seen("LLMBudget", versioned(8, "elsewhere"))
    assert (health.problem() or "").startswith("LLMBudget: ")


def test_one_watch_speaks_for_all_namespaces() -> None:
    time = Time()
    health = Health(clock=time)
    health.seen("LLMBudget", versioned(6))
    health.written("LLMBudget", versioned(7))
    time.now += DEAF_SECONDS + 1
    health.seen("LLMBudget", versioned(8, "elsewhere"))
    assert health.problem() is None


def test_what_is_listed_must_be_told_for_as_long_as_it_is_there() -> None:
    time = Time()
    health = Health(clock=time)
    health.seen("LLMBudget", versioned(6))
    for _ in range(3):
        health.listed("LLMBudget", None, 7)
        time.now += DEAF_SECONDS / 2
    assert health.problem() is not None
    health.listed("LLMBudget", None, 5)
    assert health.problem() is None, "it was deleted while there was no watch"


def test_the_first_list_of_a_watch_may_take_its_time() -> None:
    time = Time()
    health = Health(clock=time)
    health.listed("LLMBudget", None, 7)
    time.now += BEGIN_SECONDS - 1
    assert health.problem() is None
    time.now += 2
    assert health.problem() is not None
    health.seen("LLMBudget", versioned(7))
    assert health.problem() is None


def test_a_watch_may_be_faster_than_the_answer_and_may_come_late() -> None:
    time = Time()
    health = Health(clock=time)
    health.seen("LLMBudget", versioned(8))
    health.written("LLMBudget", versioned(8))
    time.now += 3600
    assert health.problem() is None
    health.written("LLMBudget", versioned(9))
    time.now += DEAF_SECONDS - 1
    health.written("LLMBudget", versioned(10))
    health.seen("LLMBudget", versioned(9))
    time.now += DEAF_SECONDS - 1
    assert health.problem() is None, "it comes along"
    time.now += 2
    assert health.problem() is not None


def test_a_write_that_changed_nothing_is_not_told_again() -> None:
    time = Time()
    health = Health(clock=time)
    health.seen("LLMProvider", versioned(8))
    health.written("LLMProvider", versioned(5))
    time.now += 3600
    assert health.problem() is None


def test_an_api_server_that_is_away_is_no_reason_to_start_again() -> None:
    time = Time()
    health = Health(clock=time)
    health.written("Lease", versioned(1))
    health.seen("Lease", versioned(1))
    time.now += 3600
    assert health.problem() is None


def test_a_minute_is_enough() -> None:
    assert _LOOK_SECONDS + DEAF_SECONDS + 2 * 10 <= 60, "two failures of a probe every ten seconds"
