"""The operator is killed at random moments, and runs twice: the cluster ends as it should (I5)."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.support.operator_stage import (
    Manifest,
    budget,
    create,
    model_of,
    start_operator,
    start_spending,
    until,
    until_model,
    until_phase,
    workload,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import DEPLOYMENTS, kind_of
from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.local.process import stop
from llmbudget.local.stage import Stage

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
EVENTS = kind_of({"apiVersion": "events.k8s.io/v1", "kind": "Event"})
ROUNDS = 8
STEPS = ((30, "notify_admin"), (50, "downgrade_models"), (80, "enforce_strict_downgrade"))


def guarded(namespace: str, cap: str) -> Manifest:
    """Write a budget with all kinds of reaction to its thresholds."""
    return budget(
        namespace,
        budget={
            "monthlyCap": cap,
            "alertThresholds": [{"percentage": at, "action": action} for at, action in STEPS],
        },
        downgrade={"ladder": ["large", "medium", "small"]},
        targets=[
            {
                "namespace": namespace,
                "selector": {"matchLabels": {"app": "researcher"}},
                "env": "LLM_MODEL",
            }
        ],
        notifications={"secretRef": {"name": "channels"}},
    )


def channels(namespace: str, port: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "channels", "namespace": namespace},
        "stringData": {"admin": f"json://127.0.0.1:{port}/notices"},
    }


async def told(cluster: Cluster, namespace: str) -> list[str]:
    """List the thresholds that Events tell of."""
    events, _ = await cluster.list(EVENTS, namespace)
    return [event["action"] for event in events if event["reason"] == "ThresholdCrossed"]


async def back_to(
    cluster: Cluster, namespace: str, template: dict[str, Any]
) -> dict[str, Any] | None:
    found = await cluster.get(DEPLOYMENTS, namespace, "researcher")
    assert found is not None
    return found if found["spec"]["template"] == template else None


async def moved(cluster: Cluster, namespace: str) -> bool:
    found = await cluster.get(DEPLOYMENTS, namespace, "researcher")
    return model_of(found) in ("medium", "small")


async def test_a_killed_operator_leaves_nothing_half_done(
    stage: Stage, cluster: Cluster, namespace: str
) -> None:
    chance = random.Random(7)
    notices: list[Any] = []

    async def take(request: Request, answer: Answer) -> None:
        notices.append(json.loads(request.body))
        answer.send(200, b"{}")

    async with AsyncExitStack() as stack:
        port = port_of(await stack.enter_async_context(await serve(take, 0)))
        await create(cluster, channels(namespace, port), workload(namespace, f"{namespace}/team-a"))
        before = await cluster.get(DEPLOYMENTS, namespace, "researcher")
        assert before is not None
        operator = await start_operator(stage)
        app = await start_spending(stage, cluster, namespace, guarded(namespace, "0.10"))
        load = [asyncio.create_task(app.go_on(seed)) for seed in range(4)]
        for turn in range(ROUNDS):
            # Up and down, again and again: each life has something to do, and little time.
            raised = turn % 2 == 1
            await create(cluster, guarded(namespace, "10.00" if raised else "0.10"))
            if turn == 0:
                await app.spend("0.06")
            await asyncio.sleep(chance.uniform(0.0, 1.5))
            operator.kill()
            await operator.wait()
            operator = await start_operator(stage, again=True)
            await asyncio.sleep(chance.uniform(1.0, 3.0))
        app.enough = True
        await asyncio.gather(*load)
        await app.books_agree(10_000_000_000)
        await create(cluster, guarded(namespace, "0.10"))
        await until("the Deployment on a cheaper model", lambda: moved(cluster, namespace))
        await until("the notice", lambda: _value(notices))
        await create(cluster, guarded(namespace, "10.00"))
        await until(
            "the Deployment as it was",
            lambda: back_to(cluster, namespace, before["spec"]["template"]),
        )
        await until_phase(cluster, namespace, "Ready")
        assert set(await told(cluster, namespace)) >= {"notify_admin", "downgrade_models"}


async def test_two_operators_at_once_agree(stage: Stage, cluster: Cluster, namespace: str) -> None:
    first, second = await start_operator(stage), await start_operator(stage, again=True)
    await create(cluster, channels(namespace, 9), workload(namespace, f"{namespace}/team-a"))
    app = await start_spending(stage, cluster, namespace, guarded(namespace, "0.10"))
    await app.spend("0.06")
    await until_model(cluster, namespace, "medium")
    await app.spend("0.03", "medium")
    await until_model(cluster, namespace, "small")
    found = await cluster.get(DEPLOYMENTS, namespace, "researcher")
    assert found is not None
    assert json.loads(found["metadata"]["annotations"]["llmbudget.io/original-env"]) == {
        "name": "LLM_MODEL",
        "value": "large",
    }, "what was there first is what is kept"
    generation = found["metadata"]["generation"]
    await asyncio.sleep(3)
    found = await cluster.get(DEPLOYMENTS, namespace, "researcher")
    assert found is not None
    assert found["metadata"]["generation"] == generation, "they don't fight"
    await create(cluster, guarded(namespace, "10.00"))
    await until_model(cluster, namespace, "large")
    await stop(first)
    await stop(second)
    assert model_of(await cluster.get(DEPLOYMENTS, namespace, "researcher")) == "large"


async def _value(value: Any) -> Any:
    return value
