"""What gateways say is told at once, and keeps nobody busy."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from tests.support.worlds import INSTALLATION

from llmbudget.clients.cluster import Cluster
from llmbudget.reconcile.controller import Controller
from llmbudget.reconcile.health import Health

ROOT, OTHER = "llm-platform/org", "llm-platform/team-b"


async def test_a_gateway_that_goes_back_and_forth_delays_no_others_transitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []

    async def write(_: Controller, root: str) -> None:
        written.append(root)

    monkeypatch.setattr(Controller, "_write", write)
    controller = Controller(
        cast(Cluster, None), INSTALLATION, local_gateways=None, instance="one", health=Health()
    )
    working = asyncio.create_task(controller.run())
    for _ in range(300):
        controller._heard(ROOT, ROOT)
        await asyncio.sleep(0.002)
    assert 10 <= written.count(ROOT) <= 12
    controller._heard(OTHER, OTHER)
    await asyncio.sleep(0.05)
    assert written[-1] == OTHER
    working.cancel()
