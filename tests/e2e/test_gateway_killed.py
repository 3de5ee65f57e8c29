"""The gateway's pod is killed while many callers spend: the volume keeps the ledger, every call
that the provider has billed has its row, and the callers go on."""

from __future__ import annotations

from decimal import Decimal

from tests.e2e.tenant import GATEWAY, Tenant, outage, statuses, until

PODS = "app.kubernetes.io/name=llmbudget-gateway"


async def test_the_ledger_outlives_its_gateway(tenant: Tenant) -> None:
    await tenant.provide()
    await tenant.spend_by(tenant.budget("50.00"))
    await tenant.agent(WORDS=100, WORKERS=8, PAUSE=0.05)
    for _ in range(2):
        await tenant.spending_goes_on()
        before = await tenant.rows()
        [pod] = await tenant.pods(PODS)
        killed = pod["metadata"]["name"]
        await tenant.kubectl("delete", "pod", killed, "--grace-period=0", "--force")

        async def replaced(killed: str = killed) -> bool:
            return killed not in [pod["metadata"]["name"] for pod in await tenant.pods(PODS)]

        await until("the pod is replaced", replaced, 60)
        await tenant.rolled_out(GATEWAY)
        await tenant.spending_goes_on()
        assert (await tenant.rows())[: len(before)] == before

    lines = await tenant.stop_agent()
    await tenant.settled()
    answers = statuses(lines)
    print(f"\n{sum(answers.values())} calls: {dict(answers)}; away for {outage(lines):.1f} s")
    assert set(answers) <= {200, 0, 503}, answers
    bill, rows = await tenant.bill(), await tenant.rows()
    # What was under way when it was killed is charged at its hold: a row, whatever became of it.
    assert len(rows) >= bill["calls"] >= answers[200]
    assert Decimal((await tenant.status())["spent"]) * 10**9 >= bill["nano"]
