"""The money's whole way: spent through a gateway, thresholds, Deployments moved, and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.support.operator_stage import (
    budget,
    create,
    model_of,
    start_spending,
    status,
    until,
    until_condition,
    until_model,
    until_phase,
    workload,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, CLAIMS, DEPLOYMENTS, kind_of
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.local.stage import Stage

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]
Manifest = dict[str, Any]
LADDER = {"ladder": ["large", "medium", "small"]}
TARGET = {"selector": {"matchLabels": {"app": "researcher"}}, "container": "main"}
REPLICA_SETS = kind_of({"apiVersion": "apps/v1", "kind": "ReplicaSet"})


def thresholds(*pairs: tuple[int, str]) -> list[Manifest]:
    return [{"percentage": at, "action": action} for at, action in pairs]


def with_thresholds(cap: str, *pairs: tuple[int, str], **more: Any) -> Manifest:
    return {"monthlyCap": cap, "alertThresholds": thresholds(*pairs), **more}


def target(namespace: str) -> Manifest:
    return {**TARGET, "namespace": namespace, "env": "LLM_MODEL"}


class Sink:
    """An address that notices are sent to."""

    def __init__(self) -> None:
        self.notices: list[Manifest] = []
        self.refuse = 0

    async def take(self, request: Request, answer: Answer) -> None:
        if self.refuse:
            self.refuse -= 1
            answer.send(503, b"")
            return
        self.notices.append(json.loads(request.body))
        answer.send(200, b"{}")


async def test_from_the_first_notice_to_the_last_step_and_back(
    stage: Stage, cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    sink = Sink()
    sink.refuse = 1
    async with AsyncExitStack() as stack:
        address = port_of(await stack.enter_async_context(await serve(sink.take, 0)))
        steps = (
            (30, "notify_admin"),
            (50, "downgrade_models"),
            (80, "enforce_strict_downgrade"),
        )
        account = f"{namespace}/team-a"
        mine = budget(
            namespace,
            budget=with_thresholds("0.10", *steps),
            downgrade=LADDER,
            targets=[target(namespace)],
            notifications={"secretRef": {"name": "channels"}},
        )
        channels = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "channels", "namespace": namespace},
            "stringData": {"admin": f"json://127.0.0.1:{address}/notices"},
        }
        await create(cluster, channels, workload(namespace, account))
        before = await cluster.get(DEPLOYMENTS, namespace, "researcher")
        app = await start_spending(stage, cluster, namespace, mine)

        await app.spend("0.030")
        await until("the notice, refused once", lambda: _value(sink.notices))
        assert account in json.dumps(sink.notices[0])
        now = await status(cluster, namespace)
        assert [t["action"] for t in now["thresholds"]] == ["notify_admin"]
        assert model_of(await cluster.get(DEPLOYMENTS, namespace, "researcher")) == "large"

        await app.spend("0.020")
        answer = await app.call("large", 1)
        assert answer.headers["x-llmbudget-model"] == "medium", "the very next call"
        assert answer.headers["x-llmbudget-downgraded-from"] == "large"
        assert answer.json()["model"] == "medium"
        moved = await until_model(cluster, namespace, "medium")
        assert json.loads(moved["metadata"]["annotations"]["llmbudget.io/original-env"]) == {
            "name": "LLM_MODEL",
            "value": "large",
        }
        now = await until_phase(cluster, namespace, "Downgraded")
        assert (now["activeModel"], now["downgradeLevel"]) == ("medium", 1)
        assert now["changedTargets"] == [
            {"namespace": namespace, "name": "researcher", "model": "medium"}
        ]
        assert (await cluster.get(BUDGETS, namespace, "team-a"))["metadata"]["finalizers"]
        await until("the rollout", lambda: _replica_sets(cluster, namespace, 2))

        await app.spend("0.030", "medium")
        await until_model(cluster, namespace, "small")
        answer = await app.call("large", 1)
        assert answer.headers["x-llmbudget-model"] == "small"
        events, _ = await cluster.list(
            kind_of({"apiVersion": "events.k8s.io/v1", "kind": "Event"}), namespace
        )
        told = [e["action"] for e in events if e["reason"] == "ThresholdCrossed"]
        assert sorted(told) == sorted(action for _, action in steps), "each once"
        assert {"TargetChanged", "Downgraded"} <= {e["reason"] for e in events}

        mine["spec"]["budget"]["monthlyCap"] = "10.00"
        await create(cluster, mine)
        await until_model(cluster, namespace, "large")
        now = await until_phase(cluster, namespace, "Ready")
        assert (now["activeModel"], now["downgradeLevel"]) == ("large", 0)
        await until("the finalizer gone", lambda: _no_finalizer(cluster, namespace))
        after = await cluster.get(DEPLOYMENTS, namespace, "researcher")
        assert after["spec"]["template"] == before["spec"]["template"]
        assert not [k for k in after["metadata"]["annotations"] if "original" in k]
        answer = await app.call("large", 1)
        assert answer.headers["x-llmbudget-model"] == "large"


async def test_deleting_a_budget_gives_the_model_back(
    stage: Stage,
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    operator: asyncio.subprocess.Process,
) -> None:
    mine = budget(
        namespace,
        budget=with_thresholds("0.10", (50, "downgrade_models")),
        downgrade=LADDER,
        targets=[target(namespace)],
    )
    await create(cluster, workload(namespace, f"{namespace}/team-a"))
    app = await start_spending(stage, cluster, namespace, mine)
    await app.spend("0.06")
    await until_model(cluster, namespace, "medium")
    kubectl("delete", "llmbudget", "team-a", "-n", namespace, "--timeout=30s")
    found = await cluster.get(DEPLOYMENTS, namespace, "researcher")
    assert model_of(found) == "large"
    assert await cluster.get(CLAIMS, namespace, "team-a-ledger")


async def test_a_workload_that_does_not_consent_is_named_and_left_alone(
    stage: Stage, cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    mine = budget(
        namespace,
        budget=with_thresholds("0.10", (50, "downgrade_models")),
        downgrade=LADDER,
        targets=[target(namespace)],
    )
    other = {"llmbudget.io/allow-budget": "someone/else", "llmbudget.io/model-env": "LLM_MODEL"}
    await create(cluster, workload(namespace, "", **other))
    refused = ("Ready", "False", "TargetNotConsenting")
    app = await start_spending(stage, cluster, namespace, mine, reason=refused)
    said = await until_condition(cluster, namespace, *refused)
    assert f"llmbudget.io/allow-budget={namespace}/team-a" in said["message"]
    await app.spend("0.06")
    answer = await app.call("large", 1)
    assert answer.headers["x-llmbudget-model"] == "medium", "calls are moved all the same"
    assert model_of(await cluster.get(DEPLOYMENTS, namespace, "researcher")) == "large"
    await create(cluster, workload(namespace, f"{namespace}/team-a"))
    await until_model(cluster, namespace, "medium")


async def test_executive_intervention_waits_for_an_approval(
    stage: Stage,
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    operator: asyncio.subprocess.Process,
) -> None:
    mine = budget(namespace, budget=with_thresholds("0.10", (50, "executive_intervention")))
    app = await start_spending(stage, cluster, namespace, mine)
    await app.spend("0.05")
    answer = await app.call()
    assert answer.status_code == 402
    assert answer.headers["x-should-retry"] == "false"
    period = (await until_phase(cluster, namespace, "AwaitingApproval"))["period"]["name"]
    message = answer.json()["error"]["message"]
    assert f"its annotation llmbudget.io/approved-period is {period}" in message
    annotation = f"llmbudget.io/approved-period={period}"
    kubectl("annotate", "llmbudget", "team-a", "-n", namespace, annotation)
    await until_phase(cluster, namespace, "Ready")
    assert (await app.call()).status_code == 200


async def test_the_hard_stop_and_what_the_status_says(
    stage: Stage, cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    app = await start_spending(
        stage, cluster, namespace, budget(namespace, budget={"monthlyCap": "0.02"})
    )
    answers = await asyncio.gather(*(app.call() for _ in range(30)))
    codes = {answer.status_code for answer in answers}
    assert codes <= {200, 402, 429}
    assert 200 in codes
    while (last := await app.call(words=1)).status_code == 200:
        pass
    assert last.status_code == 402
    error = last.json()["error"]
    assert error["type"] == "insufficient_quota"

    async def settled() -> Manifest | None:
        now = await status(cluster, namespace)
        return now if now.get("held") == "0" or now.get("held") == "0.00" else None

    now = await until("nothing held any more", settled)
    assert now["cap"] == "0.02"
    assert float(now["spent"]) <= 0.02


async def test_figures_cost_one_write_a_second_at_most(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    control_plane: ControlPlane,
    operator: asyncio.subprocess.Process,
) -> None:
    app = await start_spending(
        stage, cluster, namespace, budget(namespace, budget={"monthlyCap": "1000.00"})
    )
    await asyncio.sleep(1)
    before = len(control_plane.audit_log.read_text().splitlines())
    for _ in range(150):
        await app.call(words=10)
        await asyncio.sleep(0.02)
    spent = (await app.call(words=10)).headers["x-llmbudget-remaining-usd"]

    async def caught_up() -> bool:
        return (await status(cluster, namespace))["remaining"] == spent

    await until("the status shows the last call", caught_up, 10)
    lines = control_plane.audit_log.read_text().splitlines()[before:]
    writes = [
        event["requestReceivedTimestamp"]
        for event in map(json.loads, lines)
        if event["verb"] == "patch"
        and f"/{namespace}/llmbudgets/team-a/status" in event["requestURI"]
    ]
    assert writes, "no figures were written"
    seconds = {stamp[:19] for stamp in writes}
    assert len(writes) <= len(seconds) + 2, "more than one write a second"


async def _value(value: Any) -> Any:
    return value


async def _replica_sets(cluster: Cluster, namespace: str, count: int) -> bool:
    found, _ = await cluster.list(REPLICA_SETS, namespace, "app=researcher")
    return len(found) == count


async def _no_finalizer(cluster: Cluster, namespace: str) -> bool:
    found = await cluster.get(BUDGETS, namespace, "team-a")
    return not (found or {})["metadata"].get("finalizers")
