"""Budgets, and workloads that budgets move, kept in git by Argo CD: nobody fights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.argocd import ArgoCD, Repository
from tests.support.operator_stage import (
    GATEWAY,
    Manifest,
    budget,
    create,
    deployment,
    model_of,
    provider,
    secret,
    start_spending,
    until,
    until_condition,
    until_model,
    workload,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import DEPLOYMENTS, NETWORK_POLICIES
from llmbudget.local.stage import Stage

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,  # Argo CD takes minutes to build where it is not in the cache yet
    pytest.mark.timeout(1500),
]
QUIET = 8.0
"""Seconds in which Argo CD, which heals itself every second here, would fight twice."""
OURS = {
    "group": "apps",
    "kind": "Deployment",
    "managedFieldsManagers": ["llmbudget"],
}


@pytest.fixture
async def argocd(stage: Stage, tmp_path: Path) -> AsyncIterator[ArgoCD]:
    async with ArgoCD(stage, tmp_path / "argocd") as running:
        yield running


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
async def models(cluster: Cluster, namespace: str) -> AsyncIterator[list[str]]:
    """The workload's model, and each other one that it is ever given: a watch tells every write."""
    seen: list[str] = []

    async def follow() -> None:
        async for event in cluster.watch(
            DEPLOYMENTS, namespace, field_selector="metadata.name=researcher"
        ):
            model = model_of(event.object) if event.object else None
            if model is not None and seen[-1:] != [model]:
                seen.append(model)

    following = asyncio.create_task(follow())
    yield seen
    following.cancel()


async def test_a_budget_is_synced_degraded_and_mended(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    operator: asyncio.subprocess.Process,
    argocd: ArgoCD,
    repository: Repository,
) -> None:
    await create(cluster, secret(namespace))
    mine = budget(namespace)
    commit = repository.commit(provider=[provider(namespace)], budget=[mine])
    await argocd.application("llm", repository)
    await until("the gateway's Deployment", lambda: deployment(cluster, namespace))
    await stage.gateway(f"{namespace}/team-a")
    synced = await argocd.until_synced("llm", commit)
    health = (await argocd.resource("llm", "LLMBudget"))["health"]
    assert health == {"status": "Healthy", "message": "0.00 of 1.00 USD spent"}
    assert (await argocd.resource("llm", "LLMProvider"))["health"]["status"] == "Healthy"

    # A child is the operator's: it puts it back, and Argo CD has nothing to do with it.
    drifted = {"spec": {"template": {"spec": {"serviceAccountName": "default"}}}}
    await cluster.merge_patch(DEPLOYMENTS, namespace, GATEWAY, drifted)
    await cluster.delete(NETWORK_POLICIES, namespace, GATEWAY)

    async def put_back() -> bool:
        policy = await cluster.get(NETWORK_POLICIES, namespace, GATEWAY)
        found = await deployment(cluster, namespace)
        assert found is not None
        account = found["spec"]["template"]["spec"]["serviceAccountName"]
        return policy is not None and account == GATEWAY

    await until("the children are put back", put_back)
    await argocd.refresh("llm")
    before = await deployment(cluster, namespace)
    await asyncio.sleep(QUIET)
    after = await deployment(cluster, namespace)
    assert before is not None
    assert after is not None
    assert before["metadata"]["generation"] == after["metadata"]["generation"]
    now = await argocd.until_synced("llm", commit)
    assert now["operationState"]["startedAt"] == synced["operationState"]["startedAt"]

    bad = budget(namespace, providers=[{"name": "openruoter"}])
    commit = repository.commit(budget=[bad])
    await argocd.until_synced("llm", commit, health="Degraded")
    message = (await argocd.resource("llm", "LLMBudget"))["health"]["message"]
    assert message.startswith(f"There is no LLMProvider openruoter in namespace {namespace}")

    commit = repository.commit(budget=[mine])
    await argocd.until_synced("llm", commit)


async def test_a_workload_keeps_its_downgrade_and_gets_its_model_back(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    models: list[str],
    operator: asyncio.subprocess.Process,
    argocd: ArgoCD,
    repository: Repository,
) -> None:
    account = f"{namespace}/team-a"
    mine = {**workload(namespace, account)}
    mine["spec"] |= {"replicas": 0}
    target = {"selector": {"matchLabels": {"app": "researcher"}}, "env": "LLM_MODEL"}

    def spec(cap: str) -> dict[str, Any]:
        steps = [{"percentage": 50, "action": "downgrade_models"}]
        return {
            "budget": {"monthlyCap": cap, "alertThresholds": steps},
            "downgrade": {"ladder": ["large", "small"]},
            "targets": [target | {"namespace": namespace, "container": "main"}],
        }

    commit = repository.commit(app=[mine])
    # First without the rule, and without healing: Argo CD sees what the budget changes.
    automated = {"automated": {"prune": True}}
    await argocd.application("app", repository, syncPolicy=automated)
    await argocd.until_synced("app", commit)
    app = await start_spending(stage, cluster, namespace, budget(namespace, **spec("0.10")))
    await app.spend("0.050")
    await until_model(cluster, namespace, "small")
    await argocd.until_out_of_sync("app")

    rules = {"ignoreDifferences": [OURS]}
    await argocd.application("app", repository, **rules)
    await argocd.until_synced("app", commit)
    await stays(cluster, namespace, "small")

    # What else is in git still comes.
    container(mine)["image"] = "registry.example/researcher:1.1"
    container(mine)["env"][0]["value"] = "changed"
    commit = repository.commit(app=[mine])
    await argocd.until_synced("app", commit)
    after = await stays(cluster, namespace, "small")
    assert container(after)["image"] == "registry.example/researcher:1.1"
    assert container(after)["env"][0] == {"name": "OTHER", "value": "changed"}
    assert models == ["large", "small"], "Argo CD never set the model, not for a moment"

    await create(cluster, budget(namespace, **spec("1.00")))
    await until_condition(cluster, namespace, "Downgraded", "False", "NoDowngrade")
    await until_model(cluster, namespace, "large")
    await argocd.until_synced("app", commit)
    await stays(cluster, namespace, "large")
    assert models == ["large", "small", "large"]


async def stays(cluster: Cluster, namespace: str, model: str) -> Manifest:
    """The workload is left as it is, its model too; return it."""
    before = await cluster.get(DEPLOYMENTS, namespace, "researcher")
    await asyncio.sleep(QUIET)
    after = await cluster.get(DEPLOYMENTS, namespace, "researcher")
    assert model_of(before) == model_of(after) == model
    assert before is not None
    assert after is not None
    assert before["metadata"]["generation"] == after["metadata"]["generation"]
    return after


def container(of: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = of["spec"]["template"]["spec"]["containers"][0]
    return found
