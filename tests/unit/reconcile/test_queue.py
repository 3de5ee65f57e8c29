"""Keys are worked on once each, by one worker at a time, and failures delay only themselves."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from tests.unit.reconcile.queue_helpers import Bench, on_bench

from llmbudget.reconcile.queue import Failure, WorkQueue


def test_a_key_that_is_added_often_is_worked_on_once() -> None:
    async def scenario(bench: Bench) -> None:
        for key in ("a", "b", "a", "a", "b"):
            bench.queue.add(key)
        await bench.work_for(10)

    assert Counter(on_bench(scenario).started) == {"a": 1, "b": 1}


def test_a_key_that_is_added_again_later_is_worked_on_again() -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(3):
            bench.queue.add("a")
            await bench.work_for(1)

    assert on_bench(scenario).started == ["a", "a", "a"]


def test_keys_that_are_due_together_run_side_by_side_up_to_the_workers() -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(20):
            bench.queue.add(f"key-{number}")
        await bench.work_for(10)

    bench = on_bench(scenario)
    assert len(set(bench.started)) == len(bench.started) == 20
    assert bench.busiest == 3


def test_a_key_is_worked_on_by_one_worker_at_a_time_however_often_it_is_added() -> None:
    async def scenario(bench: Bench) -> None:
        async def add_while_working() -> None:
            for _ in range(5):
                bench.queue.add("a")
                await asyncio.sleep(1)

        bench.during["a"] = add_while_working
        bench.queue.add("a")
        await bench.work_for(20)

    bench = on_bench(scenario)
    assert bench.most["a"] == 1
    # Once more for all that came meanwhile.
    assert bench.started == ["a", "a"]


def test_a_key_that_waits_for_its_worker_holds_nobody_up() -> None:
    async def scenario(bench: Bench) -> None:
        async def slow() -> None:
            bench.queue.add("slow")
            for number in range(5):
                bench.queue.add(f"quick-{number}")
            await asyncio.sleep(5)
            assert len(bench.started) == 6

        bench.during["slow"] = slow
        bench.queue.add("slow")
        await bench.work_for(20)

    bench = on_bench(scenario)
    assert bench.started[0] == bench.started[-1] == "slow"
    assert Counter(bench.started)["slow"] == 2


def test_keys_are_worked_on_in_the_order_in_which_they_are_due() -> None:
    async def scenario(bench: Bench) -> None:
        bench.make(1)
        for key, delay in (("third", 30.0), ("first", 0.0), ("second", 10.0)):
            bench.queue.add(key, delay)
        await bench.work_for(60)

    assert on_bench(scenario).started == ["first", "second", "third"]


@pytest.mark.parametrize("delays", [(30.0, 5.0), (5.0, 30.0)], ids=["sooner", "later"])
def test_of_two_delays_the_earlier_holds_and_the_other_is_forgotten(
    delays: tuple[float, float],
) -> None:
    async def scenario(bench: Bench) -> None:
        for delay in delays:
            bench.queue.add("a", delay)
        bench.queue.add("marker", 10.0)
        await bench.work_for(100)

    assert on_bench(scenario).started == ["a", "marker"]


def test_a_key_may_be_hurried_while_the_queue_sleeps() -> None:
    async def scenario(bench: Bench) -> None:
        async def hurry() -> None:
            await asyncio.sleep(1)
            bench.queue.add("a")

        bench.queue.add("a", 300.0)
        bench.queue.add("marker", 10.0)
        await asyncio.gather(bench.work_for(400), hurry())

    assert on_bench(scenario).started == ["a", "marker"]


def test_what_failed_is_tried_again_until_it_works_and_then_no_more() -> None:
    async def scenario(bench: Bench) -> None:
        bench.failing["a"] = 4
        bench.queue.add("a")
        await bench.work_for(1000)

    assert on_bench(scenario).started == ["a"] * 5


def test_each_failure_waits_longer_than_the_one_before() -> None:
    starts: list[float] = []

    async def scenario(bench: Bench) -> None:
        async def work(_: str) -> None:
            starts.append(asyncio.get_running_loop().time())
            raise ValueError

        bench.queue = WorkQueue("failing", work, workers=1)
        bench.queue.add("a")
        await bench.work_for(3600)

    on_bench(scenario)
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses[:9] == sorted(pauses[:9])
    # It never gives up.
    assert max(pauses) < 361


def test_a_poisoned_key_delays_no_other() -> None:
    async def scenario(bench: Bench) -> None:
        bench.make(1)
        bench.failing["poisoned"] = 1000
        bench.queue.add("poisoned")
        for number in range(50):
            bench.queue.add(f"good-{number}")
            await bench.work_for(2)

    bench = on_bench(scenario)
    good = [key for key in bench.started if key != "poisoned"]
    assert good == [f"good-{number}" for number in range(50)]
    assert bench.started.count("poisoned") < 15


def test_a_success_makes_the_next_failure_a_first_one() -> None:
    async def scenario(bench: Bench) -> None:
        bench.failing["a"] = 8
        bench.queue.add("a")
        await bench.work_for(1000)
        bench.failing["a"] = 1
        bench.queue.add("a")
        bench.queue.add("marker", 1.0)
        await bench.work_for(1000)

    assert on_bench(scenario).started == ["a"] * 9 + ["a", "a", "marker"]


def test_an_event_hurries_a_failing_key_a_little_but_not_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        bench.failing["a"] = 10
        bench.queue.add("a")
        await bench.work_for(33)
        bench.started.clear()
        bench.queue.add("a")
        bench.queue.add("soon", 1.0)
        bench.queue.add("later", 4.0)
        await bench.work_for(10)

    assert on_bench(scenario).started == ["soon", "a", "later"]


def test_a_key_that_was_mended_early_waits_no_more() -> None:
    async def scenario(bench: Bench) -> None:
        bench.failing["a"] = 8
        bench.queue.add("a")
        await bench.work_for(33)
        bench.failing["a"] = 0
        for _ in range(2):
            bench.started.clear()
            bench.queue.add("a")
            bench.queue.add("marker", 1.0)
            await bench.work_for(3)

    assert on_bench(scenario).started == ["a", "marker"]


def test_events_of_a_failing_run_itself_do_not_bring_it_back_sooner() -> None:
    async def scenario(bench: Bench) -> None:
        bench.failing["a"] = 8
        bench.queue.add("a")
        await bench.work_for(9)

        async def add_itself() -> None:
            bench.started.clear()
            bench.queue.add("a")
            bench.queue.add("marker", 4.0)

        bench.during["a"] = add_itself
        await bench.work_for(600)

    assert on_bench(scenario).started[0] == "marker"


def test_whoever_asked_is_told_of_each_failure() -> None:
    told: list[tuple[str, str, int]] = []
    pauses: list[float] = []

    async def scenario(bench: Bench) -> None:
        async def failed(key: str, failure: Failure) -> None:
            told.append((key, str(failure.error), failure.tries))
            if key == "a":
                pauses.append(failure.pause)

        bench.make(2, failed)
        bench.failing.update({"a": 2, "b": 1})
        for key in ("a", "b", "good"):
            bench.queue.add(key)
        await bench.work_for(100)

    on_bench(scenario)
    assert sorted(told) == [
        ("a", "a is poisoned", 1),
        ("a", "a is poisoned", 2),
        ("b", "b is poisoned", 1),
    ]
    assert 0 < pauses[0] < pauses[1]


def test_a_failure_that_cannot_be_told_is_tried_again_all_the_same() -> None:
    async def scenario(bench: Bench) -> None:
        async def failed(key: str, failure: Failure) -> None:
            raise RuntimeError("nobody listens")

        bench.make(1, failed)
        bench.failing["a"] = 3
        bench.queue.add("a")
        await bench.work_for(100)

    assert on_bench(scenario).started == ["a"] * 4


def test_cancelling_ends_the_work_and_keeps_what_is_due() -> None:
    async def scenario(bench: Bench) -> None:
        bench.queue.add("now")
        bench.queue.add("later", 50.0)
        await bench.work_for(10)
        assert bench.started == ["now"]
        await bench.work_for(100)

    assert on_bench(scenario).started == ["now", "later"]


def test_it_ends_though_there_is_work_at_the_same_instant() -> None:
    """An operator that has lost its Lease must not go on: nothing may swallow the cancellation."""

    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.queue.run())
        bench.queue.add("later", 100)
        await asyncio.sleep(1)
        bench.queue.add("now")
        task.cancel()
        await asyncio.wait([task], timeout=10)
        assert task.cancelled()

    on_bench(scenario)
