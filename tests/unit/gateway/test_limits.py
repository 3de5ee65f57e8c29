"""Rate limits: never more than the bucket gives, and coming back when told to helps."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.contract.config import AccountConfig, Limits
from llmbudget.decide.consumers import Consumer
from llmbudget.gateway import limits as module
from llmbudget.gateway.limits import Bucket, ClientLimits, ConsumerLimits
from llmbudget.gateway.protocols.errors import Refusal

MICROSECOND = 1e-6
"""For sums of floats that fall short by their last bit."""


class Watch:
    """A clock that stands still until it is set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def consumers(watch: Watch) -> ConsumerLimits:
    return ConsumerLimits(watch, patience=0)


def budget(name: str) -> AccountConfig:
    return AccountConfig(name=name, cap_nano=None, providers=())


def consumer(**limits: int) -> Consumer:
    return Consumer("ns", "app", budget("ns/team"), "agent", Limits(**limits))


def waiting_time(refusal: Refusal) -> int | None:
    assert refusal.status == 429
    return refusal.retry_after


def client_asks(limits: ClientLimits, client: str = "10.0.0.1") -> int | None:
    """Make one request; return how long it was told to wait, None where it was admitted."""
    try:
        limits.check(client)
    except Refusal as refusal:
        return waiting_time(refusal)
    limits.count(client)
    return None


async def call(limits: ConsumerLimits, who: Consumer, tokens: int = 0) -> int | None:
    """Make one call from start to end; return how long it was told to wait, or None."""
    try:
        async with limits.admitted(who) as count_tokens:
            count_tokens(tokens)
    except Refusal as refusal:
        return waiting_time(refusal)
    return None


@given(st.integers(1, 200), st.lists(st.floats(0, 90), min_size=1, max_size=60))
def test_after_what_it_said_there_is_room_for_one_more(
    per_minute: int, between: list[float]
) -> None:
    watch = Watch()
    limits = ClientLimits(per_minute, watch)
    for pause in between:
        while (told := client_asks(limits)) is None:
            pass
        watch.now += told + MICROSECOND
        assert client_asks(limits) is None
        watch.now += pause


def test_after_exactly_what_it_said_there_is_room_for_one_more() -> None:
    watch = Watch(2.3)
    limits = ClientLimits(2, watch)
    assert [client_asks(limits) for _ in range(3)] == [None, None, 30]
    watch.now += 30
    assert client_asks(limits) is None


@given(st.integers(1, 30), st.lists(st.floats(0, 5), max_size=80))
def test_no_window_has_more_than_the_size_and_what_it_refills(
    per_minute: int, between: list[float]
) -> None:
    watch = Watch()
    limits = ClientLimits(per_minute, watch)
    admitted: list[float] = []
    for pause in between:
        admitted += [watch.now] * (client_asks(limits) is None)
        watch.now += pause
    for first, start in enumerate(admitted):
        for count, end in enumerate(admitted[first:], 1):
            assert count <= per_minute + per_minute / 60 * (end - start) + MICROSECOND


def test_more_than_a_bucket_holds_waits_until_it_is_full() -> None:
    bucket = Bucket(60, 0)
    bucket.take(40)
    assert [bucket.wait(now, 600) for now in (0, 39, 40)] == [40, 1, 0]


@pytest.mark.parametrize("per_minute", [0, -5])
def test_a_bucket_gives_at_least_one_a_minute(per_minute: int, watch: Watch) -> None:
    limits = ClientLimits(per_minute, watch)
    assert [client_asks(limits), client_asks(limits)] == [None, 60]


def test_clients_do_not_share_a_bucket_and_can_have_an_event_back(watch: Watch) -> None:
    limits = ClientLimits(1, watch)
    assert [client_asks(limits, client) for client in "aab"] == [None, 60, None]
    limits.count("a", -1)
    assert [client_asks(limits, "a"), client_asks(limits, "a")] == [None, 60]


def test_what_is_given_back_is_no_more_than_a_full_bucket(watch: Watch) -> None:
    limits = ClientLimits(2, watch)
    limits.count("a", -100)
    assert [client_asks(limits, "a") for _ in range(3)] == [None, None, 30]


def test_of_too_many_clients_the_one_seen_longest_ago_is_forgotten(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_CLIENTS", 3)
    limits = ClientLimits(1, watch)
    for client in "abca":
        client_asks(limits, client)
    assert client_asks(limits, "d") is None
    assert len(limits._buckets) == 3
    assert client_asks(limits, "a") is not None, "used again, so still remembered"
    assert client_asks(limits, "b") is None, "forgotten"


def test_a_flood_of_addresses_takes_bounded_memory(watch: Watch) -> None:
    limits = ClientLimits(1, watch)
    for number in range(module._MOST_CLIENTS + 100):
        client_asks(limits, str(number))
    assert len(limits._buckets) == module._MOST_CLIENTS


async def test_without_limits_every_call_is_admitted(consumers: ConsumerLimits) -> None:
    assert [await call(consumers, consumer(), 10**9) for _ in range(100)] == [None] * 100


async def test_calls_at_one_time(consumers: ConsumerLimits) -> None:
    async with AsyncExitStack() as running:
        first = AsyncExitStack()
        await first.enter_async_context(consumers.admitted(consumer(concurrent=2)))
        await running.enter_async_context(consumers.admitted(consumer(concurrent=2)))
        assert await call(consumers, consumer(concurrent=2)) == 1
        await first.aclose()
        assert await call(consumers, consumer(concurrent=2)) is None


async def test_a_call_that_fails_is_no_longer_under_way(consumers: ConsumerLimits) -> None:
    with pytest.raises(ValueError, match="boom"):
        async with consumers.admitted(consumer(concurrent=1)):
            raise ValueError("boom")
    assert await call(consumers, consumer(concurrent=1)) is None


async def test_a_refused_call_takes_nothing(consumers: ConsumerLimits, watch: Watch) -> None:
    who = consumer(requests_per_minute=2, concurrent=1)
    async with consumers.admitted(who):
        assert [await call(consumers, who) for _ in range(5)] == [1] * 5
    assert [await call(consumers, who), await call(consumers, who)] == [None, 30]


async def test_tokens_are_counted_when_they_are_known_and_the_debt_is_waited_out(
    consumers: ConsumerLimits, watch: Watch
) -> None:
    who = consumer(tokens_per_minute=60)
    assert await call(consumers, who, 59) is None
    assert await call(consumers, who, 100) is None, "one was left"
    assert await call(consumers, who) == 100
    watch.now += 100
    assert await call(consumers, who) is None


async def test_each_consumer_of_each_account_has_limits_of_its_own(
    consumers: ConsumerLimits,
) -> None:
    mine = consumer(requests_per_minute=1)
    others = [replace(mine, service_account="b"), replace(mine, account=budget("x/y"))]
    told = [await call(consumers, each) for each in [mine, mine, *others]]
    assert told == [None, 60, None, None]


async def test_what_runs_is_kept_when_the_limits_change(consumers: ConsumerLimits) -> None:
    async with AsyncExitStack() as running:
        for _ in range(3):
            await running.enter_async_context(consumers.admitted(consumer(concurrent=3)))
        assert await call(consumers, consumer(concurrent=2)) == 1, "three are more than two"
        assert await call(consumers, consumer(concurrent=3)) == 1
        assert await call(consumers, consumer(concurrent=4)) is None
    async with AsyncExitStack() as running:
        await running.enter_async_context(consumers.admitted(consumer(concurrent=1)))
        assert await call(consumers, consumer(concurrent=1)) == 1, (
            "all that ended were counted down"
        )


async def test_what_runs_is_kept_while_there_is_no_limit(consumers: ConsumerLimits) -> None:
    async with consumers.admitted(consumer(concurrent=1)):
        assert await call(consumers, consumer()) is None
        assert await call(consumers, consumer(concurrent=1)) == 1


async def test_what_began_without_a_limit_counts_once_there_is_one(
    consumers: ConsumerLimits,
) -> None:
    async with consumers.admitted(consumer()):
        assert await call(consumers, consumer(concurrent=1)) == 1


async def test_tokens_of_what_runs_count_after_a_change(consumers: ConsumerLimits) -> None:
    async with consumers.admitted(consumer(tokens_per_minute=60)) as count_tokens:
        assert await call(consumers, consumer(tokens_per_minute=120)) is None
        count_tokens(1000)
    assert await call(consumers, consumer(tokens_per_minute=120)) is not None


async def test_a_change_of_one_limit_leaves_what_is_used_of_another(
    consumers: ConsumerLimits,
) -> None:
    assert await call(consumers, consumer(requests_per_minute=1)) is None
    assert await call(consumers, consumer(requests_per_minute=1, concurrent=5)) == 60


async def test_of_two_limits_the_longer_wait_is_told(
    consumers: ConsumerLimits, watch: Watch
) -> None:
    who = consumer(requests_per_minute=1, tokens_per_minute=60)
    assert await call(consumers, who, 61) is None
    told = await call(consumers, who)
    assert told is not None
    watch.now += told + MICROSECOND
    assert await call(consumers, who) is None


async def test_a_burst_waits_its_turn_in_the_order_in_which_it_came() -> None:
    limits = ConsumerLimits(asyncio.get_running_loop().time)
    who = consumer(requests_per_minute=1200)
    assert [await call(limits, who) for _ in range(1200)] == [None] * 1200
    ended: list[int] = []

    async def one(number: int) -> None:
        assert await call(limits, who) is None
        ended.append(number)

    await asyncio.gather(*(one(number) for number in range(8)))
    assert ended == list(range(8))


async def test_a_call_goes_as_soon_as_another_ends(consumers: ConsumerLimits) -> None:
    limits = ConsumerLimits(asyncio.get_running_loop().time)
    who = consumer(concurrent=1)
    async with limits.admitted(who):
        waiting = [asyncio.create_task(call(limits, who)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
    assert await asyncio.gather(*waiting) == [None] * 5


async def test_who_would_wait_in_vain_is_told_at_once_how_long(watch: Watch) -> None:
    limits = ConsumerLimits(watch, patience=5)
    who = consumer(requests_per_minute=6)
    assert [await call(limits, who) for _ in range(6)] == [None] * 6
    assert await call(limits, who) == 10
    watch.now += 10
    assert await call(limits, who) is None


async def test_who_waits_in_vain_is_told_after_the_deadline() -> None:
    limits = ConsumerLimits(asyncio.get_running_loop().time, patience=0.05)
    who = consumer(concurrent=1)
    async with limits.admitted(who):
        assert await asyncio.gather(*(call(limits, who) for _ in range(3))) == [1, 1, 1]
    assert await call(limits, who) is None


async def test_those_ahead_count_in_what_is_told() -> None:
    limits = ConsumerLimits(asyncio.get_running_loop().time, patience=2.5)
    who = consumer(requests_per_minute=60)
    assert [await call(limits, who) for _ in range(60)] == [None] * 60
    told = await asyncio.gather(*(call(limits, who) for _ in range(4)))
    # Two have their turn within two seconds; to those behind them they count.
    assert told == [None, None, 3, 3]


async def test_one_that_gives_up_makes_way_for_the_next() -> None:
    limits = ConsumerLimits(asyncio.get_running_loop().time)
    who = consumer(concurrent=1)
    async with limits.admitted(who):
        first, second = (asyncio.create_task(call(limits, who)) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.sleep(0.05)
    assert await second is None
    assert first.cancelled()


async def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    limits = ConsumerLimits(asyncio.get_running_loop().time)
    who = consumer(concurrent=1)
    async with limits.admitted(who):
        waiting = [asyncio.create_task(call(limits, who)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert [task.done() for task in waiting] == [False, False, True]
    assert await asyncio.gather(*waiting) == [None, None, 1]


async def test_a_higher_limit_lets_those_go_that_wait() -> None:
    limits = ConsumerLimits(asyncio.get_running_loop().time)
    async with limits.admitted(consumer(concurrent=1)):
        waiting = asyncio.create_task(call(limits, consumer(concurrent=1)))
        await asyncio.sleep(0.05)
        async with limits.admitted(consumer(concurrent=3)):
            assert await waiting is None
