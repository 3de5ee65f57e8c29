"""The node loses its power while applications call: containers, runtime and kubelet end at once.
When it is back, the volume has the ledger, and the callers go on."""

from __future__ import annotations

from decimal import Decimal

from tests.e2e.cluster.machine import Machine
from tests.e2e.tenant import APPLICATION, GATEWAY, PROVIDER, Tenant, outage, statuses, until

DEPLOYMENTS = (GATEWAY, PROVIDER, APPLICATION)


async def test_the_ledger_outlives_its_node(tenant: Tenant, node: Machine) -> None:
    await tenant.provide()
    await tenant.spend_by(tenant.budget("50.00"))
    await tenant.agent(WORDS=100, WORKERS=4, PAUSE=0.05)
    await tenant.spending_goes_on()
    answered, before = statuses(await tenant.said())[200], await tenant.rows()
    running = await tenant.running(*DEPLOYMENTS)
    assert len(running) == len(DEPLOYMENTS)

    node.crash_node()
    node.start_node()

    async def restarted() -> bool:
        now = await tenant.running(*DEPLOYMENTS)
        return now.keys() == running.keys() and not set(now.values()) & set(running.values())

    await until("each has a new container", restarted, 120)
    await tenant.spending_goes_on()
    assert (await tenant.rows())[: len(before)] == before
    assert len(before) >= answered

    lines = await tenant.stop_agent()
    await tenant.settled()
    print(f"\nafter the restart: {dict(statuses(lines))}; waited {outage(lines):.1f} s for calls")
    bill, rows = await tenant.bill(), await tenant.rows()
    # What was under way is charged at its hold: a row, whatever became of it.
    assert len(rows) >= bill["calls"]
    assert Decimal((await tenant.status())["spent"]) * 10**9 >= bill["nano"]
