"""An operator of a team's own, where nobody gave it a right in the whole cluster."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.operator_stage import (
    budget,
    condition,
    create,
    deployment,
    provider,
    secret,
    start_spending,
    status,
    until,
    until_condition,
    until_model,
    workload,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, CLUSTER_ROLE_BINDINGS, NETWORK_POLICIES
from llmbudget.local import binaries
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.release import release
from llmbudget.local.stage import OPERATOR_ACCOUNT, Stage, StageError

pytestmark = pytest.mark.cluster
TEAM = "team-a"
OFFLINE = {"mode": "Offline"}
LEAD = ("--as=lead", "--as-group=system:authenticated")
Manifest = dict[str, Any]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """A cluster of its own: what is bound in the shared one must not help here."""
    async with ControlPlane(tmp_path / "plane", say=lambda _: None, audit=True) as started:
        yield started


@pytest.fixture
async def stage(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Stage]:
    kubectl = binaries.find(lambda _: None).kubectl
    async with Stage(tmp_path / "stage", plane.kubeconfig, kubectl) as made:
        yield made


@pytest.fixture
async def cluster(plane: ControlPlane) -> AsyncIterator[Cluster]:
    async with Cluster.from_kubeconfig(plane.kubeconfig) as connected:
        yield connected


@pytest.fixture
async def installed(stage: Stage, tmp_path: Path) -> None:
    """The cluster's administrator applies the prerequisites; whoever has `admin` in one namespace
    installs the operator there."""
    files = {path.name: path for path in release(tmp_path / "dist")}
    await stage.kubectl("apply", "-f", str(files["llmbudget-prerequisites.yaml"]))
    await stage.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    for namespace in (TEAM, "elsewhere"):
        await stage.kubectl("create", "namespace", namespace)
    await stage.kubectl(
        "create", "rolebinding", "lead", "--clusterrole=admin", "--user=lead", "-n", TEAM
    )
    text = files["llmbudget-namespaced.yaml"].read_text().replace("llmbudget-team", TEAM)

    async def applied() -> str | None:
        # `admin` is filled by aggregation, in a moment.
        try:
            return await stage.kubectl("apply", "-f", "-", *LEAD, stdin=text)
        except StageError:
            return None

    said = await stage.until("the operator's manifests", applied)
    assert "deployment.apps/llmbudget-operator" in said


async def test_a_budget_is_kept_with_nothing_but_roles(
    stage: Stage, cluster: Cluster, plane: ControlPlane, installed: None
) -> None:
    account = f"{TEAM}/team-a"
    await create(cluster, workload(TEAM, account))
    await stage.operator(allow_private=["127.0.0.1"], only=TEAM)
    selector = {"matchLabels": {"app": "researcher"}}
    here, there = (
        {"namespace": name, "selector": selector, "container": "main", "env": "LLM_MODEL"}
        for name in (TEAM, "elsewhere")
    )
    mine = budget(
        TEAM,
        identity=OFFLINE,
        budget={
            "monthlyCap": "0.10",
            "alertThresholds": [{"percentage": 50, "action": "downgrade_models"}],
        },
        downgrade={"ladder": ["large", "small"]},
        targets=[here],
    )
    app = await start_spending(stage, cluster, TEAM, mine)
    await app.spend("0.050")
    await until_model(cluster, TEAM, "small")
    await app.books_agree(100_000_000)

    policy = await cluster.get(NETWORK_POLICIES, TEAM, "team-a-gateway")
    assert policy is not None
    servers = [
        rule["ports"][0]["port"]
        for rule in policy["spec"]["egress"]
        if any(peer.get("ipBlock", {}).get("cidr", "").endswith("/32") for peer in rule["to"])
    ]
    assert plane_port(plane) in servers, "the gateway reaches the API server"

    await create(cluster, budget(TEAM, **(mine["spec"] | {"targets": [here, there]})))
    says = "may not look at the Deployments in namespace elsewhere"
    await until_condition(cluster, TEAM, "Downgraded", "True", "ThresholdCrossed", says=says)
    await until_model(cluster, TEAM, "small")

    await cluster.delete(BUDGETS, TEAM, "team-a")
    await until_model(cluster, TEAM, "large")
    bindings, _ = await cluster.list(CLUSTER_ROLE_BINDINGS)
    assert not [one for one in bindings if "llmbudget" in one["metadata"]["name"]]
    # Only what it was told to look at, and it wasn't let, was forbidden.
    assert {path for path in forbidden(plane) if "/elsewhere/" not in path} == set()


async def test_what_takes_a_right_in_the_whole_cluster_is_said(
    stage: Stage, cluster: Cluster, installed: None
) -> None:
    await stage.operator(allow_private=["127.0.0.1"], only=TEAM)
    await create(cluster, secret(TEAM), provider(TEAM), budget(TEAM))
    says = "set spec.identity.mode to Offline"
    await until_condition(cluster, TEAM, "Ready", "False", "NotSupported", says=says)
    assert condition(await status(cluster, TEAM), "Stalled")["status"] == "True"
    assert await deployment(cluster, TEAM) is None

    await create(cluster, budget("elsewhere", identity=OFFLINE))
    await create(cluster, budget(TEAM, identity=OFFLINE))
    await until("the gateway's Deployment", lambda: deployment(cluster, TEAM))
    assert await status(cluster, "elsewhere") == {}, "another namespace is nobody's business"


def plane_port(plane: ControlPlane) -> int:
    return int(plane.kubeconfig.read_text().split("127.0.0.1:")[1].split()[0])


def forbidden(plane: ControlPlane) -> list[str]:
    """What was asked by the operator's account and refused, as the audit log has it."""
    user = f"system:serviceaccount:{TEAM}:{OPERATOR_ACCOUNT}"
    events = map(json.loads, plane.audit_log.read_text().splitlines())
    return [
        f"{event['verb']} {event['requestURI']}"
        for event in events
        if event["user"]["username"] == user and event.get("responseStatus", {}).get("code") == 403
    ]
