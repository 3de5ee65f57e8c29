"""Following a gateway: whatever it sends, the operator has time and memory for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from tests.unit.reconcile.status_helpers import ROOT, balance
from tests.unit.reconcile.test_actions import CROSSED

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.gateway import GatewayError
from llmbudget.contract.events import SnapshotEvent, StreamEvent
from llmbudget.reconcile import streams
from llmbudget.reconcile.streams import MOST_ACTIONS, Place, Streams


class Gateway:
    """Says something, and ends."""

    def __init__(self, *events: StreamEvent, end: Exception | None = None) -> None:
        self.connections = 0
        self._events = events
        self._end = end

    def __call__(self, *_: Any, **__: Any) -> Gateway:
        return self

    async def close(self) -> None: ...

    async def events(self) -> AsyncIterator[StreamEvent]:
        self.connections += 1
        for event in self._events:
            yield event
        await asyncio.sleep(0)
        if self._end is not None:
            raise self._end


@asynccontextmanager
async def following(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Streams]:
    monkeypatch.setattr(streams, "GatewayClient", gateway)
    followed = Streams(
        *(cast(Cluster, None), "ns/operator", None),
        *(lambda root, account: account == root, lambda *_: None, lambda *_: None),
    )
    followed.follow(ROOT, Place(("team-gateway",), True, None))
    yield followed
    await followed.close()


@pytest.mark.parametrize("end", [None, GatewayError("another version"), TypeError("x")])
async def test_a_gateway_that_only_begins_to_speak_is_asked_seldom(
    monkeypatch: pytest.MonkeyPatch, end: Exception | None
) -> None:
    gateway = Gateway(SnapshotEvent(seq=1), end=end)
    async with following(gateway, monkeypatch):
        await asyncio.sleep(0.6)
    # At once, and again at once where it was connected; then after 0.25 and 0.5 seconds.
    assert 2 <= gateway.connections <= 4


async def test_what_a_gateway_tells_of_others_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [balance(f"evil/team-{number}") for number in range(100)]
    async with following(Gateway(*told, balance(), SnapshotEvent(seq=1)), monkeypatch) as followed:
        await asyncio.sleep(0.1)
        assert followed.state(ROOT).balances.keys() == {ROOT}


async def test_a_gateway_tells_of_so_many_actions_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = [CROSSED.model_copy(update={"id": str(number)}) for number in range(MOST_ACTIONS + 1)]
    async with following(Gateway(balance(), *told), monkeypatch) as followed:
        await asyncio.sleep(0.1)
        state = followed.state(ROOT)
        assert len(state.actions) == MOST_ACTIONS
        assert state.problem == f"the gateway tells of more than {MOST_ACTIONS} actions"
