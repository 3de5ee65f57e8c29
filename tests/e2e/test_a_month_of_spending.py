"""An application without a key spends its budget through the Service, is moved to a cheaper model,
and is stopped at the cap."""

from __future__ import annotations

from decimal import Decimal

from tests.e2e.tenant import Tenant, until
from tests.support.operator_stage import model_of

CAP = "0.30"


async def test_a_budget_is_spent_downgraded_and_stopped(tenant: Tenant) -> None:
    await tenant.provide()
    await tenant.spend_by(
        tenant.budget(
            CAP,
            budget={
                "monthlyCap": CAP,
                "alertThresholds": [{"percentage": 50, "action": "downgrade_models"}],
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
    await tenant.agent(WORDS=400, WORKERS=4, PAUSE=0.05)
    before = (await tenant.pods("app=researcher"))[0]["metadata"]["name"]
    assert (await tenant.until_said("the first answer", status=200))["model"] == "claude-3-sonnet"

    await tenant.until_phase("Downgraded")
    await tenant.rolled_out("researcher")

    async def rolled() -> str | None:
        names = [pod["metadata"]["name"] for pod in await tenant.pods("app=researcher")]
        return names[0] if len(names) == 1 and names[0] != before else None

    after = await until("the application's pod is a new one", rolled, 60)
    assert model_of(await tenant.deployment("researcher")) == "gpt-4o-mini"
    assert (await tenant.until_said("the new pod starts", after, started="gpt-4o-mini"))["at"]

    stopped = await tenant.until_said("the cap stops the application", after, status=402)
    assert f"{tenant.namespace}/team-a" in stopped["message"]
    bill = await tenant.books_agree()
    assert bill["nano"] <= Decimal(CAP) * 10**9
    assert bill["refused"] == 0
