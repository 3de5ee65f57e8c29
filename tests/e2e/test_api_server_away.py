"""The API server is away for E2E_AWAY seconds (60). Where identities are verified offline, calls go
on; where the API server reviews them, they are refused with 503, and go on when it is back."""

from __future__ import annotations

import asyncio
import os

from tests.e2e.cluster.machine import Machine
from tests.e2e.tenant import GATEWAYS, Tenant, outage, statuses

AWAY = float(os.environ.get("E2E_AWAY", "60"))


async def test_offline_goes_on_and_token_review_refuses(tenant: Tenant, node: Machine) -> None:
    await tenant.provide()
    offline = tenant.budget("50.00", identity={"mode": "Offline"})
    reviewed = tenant.budget("50.00")
    reviewed["metadata"]["name"] = "team-b"
    await tenant.apply(offline, reviewed)
    await tenant.until_ready()
    await tenant.until_ready(name="team-b")
    await tenant.agent(WORDS=20, PAUSE=0.2)
    await tenant.agent(name="reviewed", budget="team-b", WORDS=20, PAUSE=0.2)
    await tenant.spending_goes_on()
    await tenant.spending_goes_on("reviewed")

    node.daemons["kube-apiserver"].kill()
    await asyncio.sleep(AWAY)
    node.start_api_server()
    await tenant.spending_goes_on()
    await tenant.spending_goes_on("reviewed")

    for pod in await tenant.pods(GATEWAYS):
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    lines = await tenant.stop_agent()
    assert set(statuses(lines)) == {200}
    assert outage(lines) < 10
    others = await tenant.stop_agent("reviewed")
    print(f"\nreviewed: {dict(statuses(others))}; without an answer for {outage(others):.1f} s")
    assert set(statuses(others)) == {200, 503}
    assert outage(others) > AWAY / 2
    status = await tenant.until_ready()
    assert status["phase"] == "Ready"
