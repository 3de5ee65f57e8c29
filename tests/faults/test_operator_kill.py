"""The operator is killed at random moments, and runs twice: the cluster ends as it should (I5)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
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
    provider,
    secret,
    start_operator,
    start_spending,
    until,
    until_model,
    until_phase,
    workload,
)

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import CONFIG_MAPS, DEPLOYMENTS, LEASES, kind_of
from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.local.process import stop
from llmbudget.local.stage import OPERATOR_NAMESPACE, Stage
from llmbudget.reconcile.election import LEASE_NAME

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


async def spend_and_recover(stage: Stage, cluster: Cluster, namespace: str) -> None:
    """Cross all thresholds and raise the cap, while two operators act or may: what happens happens
    once, and what they write stays as it is."""
    notices: list[str] = []

    async def take(request: Request, answer: Answer) -> None:
        notices.append(json.loads(request.body)["title"])
        answer.send(200, b"{}")

    async with await serve(take, 0) as server:
        sink = channels(namespace, port_of(server))
        await create(cluster, sink, workload(namespace, f"{namespace}/team-a"))
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
        gateway = await cluster.get(DEPLOYMENTS, namespace, "team-a-gateway")
        await asyncio.sleep(3)
        for before in (found, gateway):
            assert before is not None
            metadata = before["metadata"]
            now = await cluster.get(DEPLOYMENTS, namespace, metadata["name"])
            assert now is not None
            assert now["metadata"]["generation"] == metadata["generation"], "they don't fight"
        await create(cluster, guarded(namespace, "10.00"))
        await until_model(cluster, namespace, "large")
        await until("every notice", lambda: _value(len(notices) >= len(STEPS)))
        assert sorted(await told(cluster, namespace)) == sorted(action for _, action in STEPS)
        assert len(notices) == len(STEPS), notices


async def test_two_operators_that_both_think_they_lead_agree(
    stage: Stage, cluster: Cluster, namespace: str
) -> None:
    """Under one name both hold the Lease."""
    first, second = await start_operator(stage), await start_operator(stage, again=True)
    await spend_and_recover(stage, cluster, namespace)
    for each in (first, second):
        assert each.returncode is None
        await stop(each)
    assert model_of(await cluster.get(DEPLOYMENTS, namespace, "researcher")) == "large"


async def test_operators_between_whom_somebody_else_hands_the_lease_to_and_fro_agree(
    stage: Stage, cluster: Cluster, namespace: str
) -> None:
    """Whoever it names begins at once, and the other goes on until its next renewal: two seconds in
    which both act, again and again. Each is started anew when it ends, as by its Deployment."""
    chance = random.Random(11)
    lives = dict.fromkeys(("first", "second"), 0)

    async def live(identity: str) -> None:
        while True:
            lives[identity] += 1
            process = await stage.operator(
                allow_private=["127.0.0.1"], name=f"{identity}-{lives[identity]}", identity=identity
            )
            try:
                await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()

    async def forge() -> None:
        for holder in itertools.cycle(lives):
            with contextlib.suppress(ApiError):  # there is no Lease yet
                spec = {"holderIdentity": holder}
                await cluster.merge_patch(LEASES, OPERATOR_NAMESPACE, LEASE_NAME, {"spec": spec})
            await asyncio.sleep(chance.uniform(0.5, 4))

    def led(identity: str) -> int:
        logs = (stage.log(f"{identity}-{number}") for number in range(1, lives[identity] + 1))
        return sum('"leading"' in log.read_text() for log in logs if log.exists())

    tasks = [asyncio.create_task(live(each)) for each in lives]
    tasks.append(asyncio.create_task(forge()))
    try:
        await spend_and_recover(stage, cluster, namespace)
        await until("each has led, more than once", lambda: _value(min(map(led, lives)) > 1))
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert model_of(await cluster.get(DEPLOYMENTS, namespace, "researcher")) == "large"


async def test_the_second_waits_until_the_first_is_gone(
    stage: Stage, cluster: Cluster, namespace: str
) -> None:
    def leads(name: str) -> bool:
        return '"leading"' in stage.log(name).read_text()

    async def acts(cap: int) -> bool:
        """Tell whether somebody carries a change of the cap out."""
        changed = budget(namespace, budget={"monthlyCap": f"{cap}.00"})
        await create(cluster, changed)
        found = await cluster.get(CONFIG_MAPS, namespace, "team-a-gateway")
        return f'"capNano": {cap * 10**9}' in (found or {"data": {"": ""}})["data"].get(
            "gateway.json", ""
        )

    await create(cluster, secret(namespace), provider(namespace))
    first = await stage.operator(allow_private=["127.0.0.1"], name="first", identity="first")
    await until("the first acts", lambda: acts(2))
    second = await stage.operator(allow_private=["127.0.0.1"], name="second", identity="second")
    await until(
        "the second waits", lambda: _value('"waiting for' in stage.log("second").read_text())
    )
    await until("the first goes on", lambda: acts(3))
    assert not leads("second")
    first.kill()
    await first.wait()
    await until("the second acts", lambda: acts(4))
    third = await stage.operator(allow_private=["127.0.0.1"], name="third", identity="third")
    await until("the third waits", lambda: _value('"waiting for' in stage.log("third").read_text()))
    await stop(second)
    assert second.returncode == 0, "it was asked to end, and did"
    await until("the third acts", lambda: acts(5), 10)
    await stop(third)


async def _value(value: Any) -> Any:
    return value
