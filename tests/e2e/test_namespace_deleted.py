"""A budget's whole namespace is deleted, with the gateway, the consents and the operator's rights
in it. Nothing waits for anybody: it is gone, and what it had elsewhere too."""

from __future__ import annotations

from tests.conftest import Kubectl
from tests.e2e.tenant import Tenant, until
from tests.support.operator_stage import model_of

from llmbudget.clients.kinds import BUDGETS


async def test_a_namespace_goes_at_once(tenant: Tenant, kubectl: Kubectl) -> None:
    await tenant.provide()
    await tenant.spend_by(
        tenant.budget(
            "0.10",
            budget={
                "monthlyCap": "0.10",
                "alertThresholds": [{"percentage": 30, "action": "downgrade_models"}],
            },
            downgrade={"ladder": ["claude-3-sonnet", "gpt-4o-mini"]},
            targets=[
                {
                    "namespace": tenant.namespace,
                    "selector": {"matchLabels": {"app": "researcher"}},
                    "env": "LLM_MODEL",
                }
            ],
        )
    )
    await tenant.agent(WORDS=400, WORKERS=2, PAUSE=0.2)

    async def downgraded() -> bool:
        return model_of(await tenant.deployment("researcher")) == "gpt-4o-mini"

    await until("the application is moved", downgraded, 90)
    # Whose target is changed has a finalizer: the case in which a deletion could wait.
    budget = await tenant.cluster.get(BUDGETS, tenant.namespace, "team-a")
    assert budget is not None
    assert budget["metadata"].get("finalizers")
    kubectl("delete", "namespace", tenant.namespace, "--timeout=45s")

    async def swept() -> bool:
        left = kubectl("get", "clusterrolebindings", "-o", "name")
        return tenant.namespace not in left

    await until("nothing of it is left in the cluster", swept, 30)
