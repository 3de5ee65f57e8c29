"""Following a gateway: whatever it sends, the operator has time for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.gateway import GatewayError
from llmbudget.contract.events import SnapshotEvent
from llmbudget.reconcile import streams
from llmbudget.reconcile.streams import Place, Streams


@pytest.mark.parametrize("end", [None, GatewayError("another version"), TypeError("x")])
async def test_a_gateway_that_only_begins_to_speak_is_asked_seldom(
    monkeypatch: pytest.MonkeyPatch, end: Exception | None
) -> None:
    connections = 0

    class Brief:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        async def close(self) -> None: ...

        async def events(self) -> AsyncIterator[SnapshotEvent]:
            nonlocal connections
            connections += 1
            yield SnapshotEvent(seq=1)
            await asyncio.sleep(0)
            if end is not None:
                raise end

    monkeypatch.setattr(streams, "GatewayClient", Brief)
    followed = Streams(cast(Cluster, None), "ns/operator", None, lambda *_: None, lambda *_: None)
    followed.follow("ns/team", Place(("team-gateway",), True, None))
    await asyncio.sleep(0.6)
    await followed.close()
    # At once, and again at once where it was connected; then after 0.25 and 0.5 seconds.
    assert 2 <= connections <= 4
