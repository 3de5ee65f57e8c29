"""Requests under way have a bound in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.gateway.test_wire import request

from llmbudget.gateway.memory import RequestMemory, share_of_memory
from llmbudget.gateway.protocols.errors import Refusal

MIB = 1024 * 1024


def test_what_has_no_room_is_refused_and_may_come_back() -> None:
    memory = RequestMemory(64 * MIB)
    with memory.claim(40 * MIB):
        with memory.claim(24 * MIB), pytest.raises(Refusal) as refused:
            memory.claim(1)
        assert (refused.value.status, refused.value.retry_after) == (429, 2)
        with memory.claim(24 * MIB):
            pass
    with memory.claim(64 * MIB):
        pass


def test_one_request_alone_has_room_whatever_its_size() -> None:
    memory = RequestMemory(MIB)
    with memory.claim(25 * MIB), pytest.raises(Refusal):
        memory.claim(1)


def test_a_body_of_unknown_length_takes_what_it_turns_out_to_be() -> None:
    memory = RequestMemory(10 * MIB)
    with memory.claim(10 * MIB) as claim:
        claim.shrink(MIB)
        with memory.claim(9 * MIB):
            pass
    with memory.claim(10 * MIB), pytest.raises(Refusal):
        memory.claim(1)


def test_a_failed_call_gives_its_room_back() -> None:
    memory = RequestMemory(MIB)
    with pytest.raises(RuntimeError), memory.claim(MIB):
        raise RuntimeError
    with memory.claim(MIB):
        pass


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ([("content-length", "12")], 12),
        ([("content-length", "999999999999")], 1000),
        ([("transfer-encoding", "chunked")], 1000),
        ([], 0),
    ],
)
def test_what_a_request_announces(fields: list[tuple[str, str]], size: int) -> None:
    assert request(*fields).announced(1000) == size


def test_the_share_follows_the_containers_limit(tmp_path: Path) -> None:
    file = tmp_path / "memory.max"
    file.write_text(f"{512 * MIB}\n")
    assert share_of_memory(file) == 64 * MIB
    file.write_text("max\n")
    assert share_of_memory(file) == share_of_memory(tmp_path / "missing") > 64 * MIB
