"""Requests under way have a bound in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.gateway.test_wire import Body, request

from llmbudget.gateway.memory import RequestMemory, share_of_memory
from llmbudget.gateway.protocols.errors import Refusal

MIB = 1024 * 1024


def test_what_has_no_room_is_refused_and_may_come_back() -> None:
    memory = RequestMemory(64 * MIB)
    with memory.claim() as one:
        one.add(40 * MIB)
        with memory.claim() as other:
            other.add(24 * MIB)
            with memory.claim() as third, pytest.raises(Refusal) as refused:
                third.add(1)
            assert (refused.value.status, refused.value.retry_after) == (429, 2)
        one.add(24 * MIB)
    with memory.claim() as later:
        later.add(64 * MIB)


def test_one_request_alone_has_room_whatever_its_size() -> None:
    memory = RequestMemory(MIB)
    with memory.claim() as alone, memory.claim() as other:
        for _ in range(25):
            alone.add(MIB)
        with pytest.raises(Refusal):
            other.add(1)


def test_a_failed_call_gives_its_room_back() -> None:
    memory = RequestMemory(MIB)
    with memory.claim() as before, memory.claim() as refused:
        before.add(MIB // 2)
        with pytest.raises(Refusal):
            refused.add(MIB)
    with memory.claim() as claim, memory.claim() as other:
        claim.add(MIB // 2)
        other.add(MIB // 2)


@pytest.mark.parametrize("whole", [True, False])
async def test_a_body_counts_as_it_arrives_not_as_it_is_announced(whole: bool) -> None:
    told: list[int] = []
    body = Body([b"a" * 10, b"b" * 20], whole=whole)
    asked = request(("content-length", "9999999"), body=body)
    assert len(await asked.body(1000, told.append)) == 30
    assert told == ([30] if whole else [10, 20])


def test_the_share_follows_the_containers_limit(tmp_path: Path) -> None:
    file = tmp_path / "memory.max"
    file.write_text(f"{512 * MIB}\n")
    assert share_of_memory(file) == 64 * MIB
    file.write_text("max\n")
    assert share_of_memory(file) == share_of_memory(tmp_path / "missing") > 64 * MIB
