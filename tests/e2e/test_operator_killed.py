"""The operator's pod is killed while it makes what budgets need, again and again: another one
finishes, nothing is made twice, and calls go on meanwhile."""

from __future__ import annotations

import asyncio
import json

from tests.conftest import Kubectl
from tests.e2e.tenant import GATEWAYS, Tenant, statuses, until
from tests.support.operator_stage import condition

from llmbudget.clients.kinds import BUDGETS, DEPLOYMENTS

NAMES = [f"team-{letter}" for letter in "bcd"]
OPERATOR = ("-n", "llmbudget-system")


async def test_another_operator_finishes(tenant: Tenant, kubectl: Kubectl) -> None:
    await tenant.provide()
    await tenant.spend_by(tenant.budget("50.00"))
    await tenant.agent(WORDS=20, WORKERS=2, PAUSE=0.1)
    await tenant.spending_goes_on()
    for name in NAMES:
        written = tenant.budget("1.00")
        written["metadata"]["name"] = name
        await tenant.apply(written)
        kill_operator(kubectl)
        await asyncio.sleep(1.5)

    async def ready() -> bool:
        found = [await tenant.cluster.get(BUDGETS, tenant.namespace, name) for name in NAMES]
        conditions = [condition((one or {}).get("status") or {}, "Ready") for one in found]
        return all(one.get("status") == "True" for one in conditions)

    await until("all budgets are Ready", ready, 120)
    kubectl(*OPERATOR, "rollout", "status", "deployment/llmbudget-operator", "--timeout=50s")
    assert len(await tenant.pods(GATEWAYS)) == 1 + len(NAMES)
    for name in ["team-a", *NAMES]:
        made = await tenant.cluster.get(DEPLOYMENTS, tenant.namespace, f"{name}-gateway")
        assert made is not None
        assert made["metadata"]["generation"] == 1, "it was written once"
    assert set(statuses(await tenant.stop_agent())) == {200}
    await tenant.books_agree()


def kill_operator(kubectl: Kubectl) -> None:
    """Kill every operator's pod at once, without grace."""
    listed = json.loads(kubectl(*OPERATOR, "get", "pods", "-o", "json"))
    names = [pod["metadata"]["name"] for pod in listed["items"]]
    kubectl(*OPERATOR, "delete", "pod", *names, "--grace-period=0", "--force", "--wait=false")
