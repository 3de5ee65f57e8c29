"""Operations on their way from the event loop to the thread that commits them."""

from __future__ import annotations

import asyncio

from llmbudget.ledger.queue import GROUP, Queue


async def test_what_a_turn_of_the_loop_asks_for_is_one_group() -> None:
    queue: Queue[int] = Queue(asyncio.get_running_loop())
    for number in range(3):
        queue.put(number)
    taken = await asyncio.to_thread(queue.take, 5)
    assert taken == ([0, 1, 2], True)


async def test_nothing_comes_within_the_time() -> None:
    queue: Queue[int] = Queue(asyncio.get_running_loop())
    assert queue.take(0.001) == ([], True)


async def test_what_is_queued_is_taken_before_the_end() -> None:
    queue: Queue[int] = Queue(asyncio.get_running_loop())
    queue.put(1)
    queue.end()
    assert queue.take(5) == ([1], False)
    await asyncio.sleep(0)  # the turn that was handed over already has nothing to add


async def test_a_group_is_full_at_its_size_and_the_rest_is_the_next_one() -> None:
    queue: Queue[int] = Queue(asyncio.get_running_loop())
    for number in range(GROUP):
        queue.put(number)
    await asyncio.sleep(0)
    queue.put(GROUP)
    await asyncio.sleep(0)
    assert queue.take(5) == (list(range(GROUP)), True)
    assert queue.take(5) == ([GROUP], True)


async def test_what_is_taken_at_once_is_not_for_the_thread() -> None:
    queue: Queue[int] = Queue(asyncio.get_running_loop(), lambda turn: turn == [1])
    for turn in ([1], [2, 3]):
        for number in turn:
            queue.put(number)
        await asyncio.sleep(0)
    assert queue.take(5) == ([2, 3], True)
