"""Several gateway pods of one budget, as the operator runs them: rolled and killed under load."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.operator_stage import (
    GATEWAY,
    READY,
    Manifest,
    Spender,
    budget,
    create,
    deployment,
    start_spending,
    status,
    until,
    until_condition,
)
from tests.support.postgres_server import PostgresServer
from tests.support.shared_ledger import SharedLedger

from llmbudget.clients.cluster import Cluster
from llmbudget.local.bill import Bill
from llmbudget.local.stage import Stage

pytestmark = pytest.mark.cluster
SPEC: dict[str, Any] = {
    "ledger": {"postgres": {"secretKeyRef": {"name": "db", "key": "uri"}}},
    "budget": {
        "monthlyCap": "1.00",
        "alertThresholds": [{"percentage": 10, "action": "notify_admin"}],
    },
}


def replicas(count: int, cpu: str = "100m") -> Manifest:
    return {"replicas": count, "resources": {"requests": {"cpu": cpu}}}


def connection_secret(namespace: str, url: str) -> Manifest:
    metadata = {
        "name": "db",
        "namespace": namespace,
        "labels": {"llmbudget.io/ledger": "true"},
        "annotations": {"llmbudget.io/allowed-host": "127.0.0.1"},
    }
    data = {"uri": base64.b64encode(url.encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def pods(stage: Stage, namespace: str) -> list[Manifest]:
    """Read where the gateways run."""
    text = (stage.gateways / f"{namespace}_team-a.json").read_text()
    found: list[Manifest] = json.loads(text)["pods"]
    return found


async def call_on(spender: Spender, codes: Counter[int], enough: asyncio.Event) -> None:
    """Call again and again by one connection after the other, as SDKs do."""
    while not enough.is_set():
        # Whoever speaks HTTP meets connections that were closed while idle, and tries again.
        with contextlib.suppress(httpx.TransportError):
            codes[(await spender.call("small", 5)).status_code] += 1
        await asyncio.sleep(0.05)


async def test_pods_are_rolled_and_killed_and_nobody_notices(
    cluster: Cluster,
    stage: Stage,
    operator: asyncio.subprocess.Process,
    namespace: str,
    postgres: PostgresServer,
    tmp_path: Path,
) -> None:
    ledger = SharedLedger(postgres, tmp_path)
    await create(cluster, connection_secret(namespace, ledger.url))
    written = budget(namespace, **SPEC, deployment=replicas(2))
    spender = await start_spending(stage, cluster, namespace, written)
    await until("two pods", two_pods(stage, namespace))
    codes: Counter[int] = Counter()
    enough = asyncio.Event()
    callers = [asyncio.create_task(call_on(spender, codes, enough)) for _ in range(8)]
    try:
        before = {pod["pid"] for pod in pods(stage, namespace)}
        await create(cluster, budget(namespace, **SPEC, deployment=replicas(2, "110m")))

        async def rolled() -> bool:
            found = await deployment(cluster, namespace) or {}
            state = found.get("status", {})
            now = {pod["pid"] for pod in pods(stage, namespace)}
            settled = state.get("replicas") == state.get("availableReplicas") == 2
            return settled and len(now) == 2 and not now & before

        await until("all pods are new", rolled, 90)
        rolling = Counter(codes)
        assert set(rolling) == {200}, "a rolling restart answers no error"
        # The pod that the operator follows, or the other: both, one after the other.
        for pid in sorted(pod["pid"] for pod in pods(stage, namespace)):
            os.kill(pid, signal.SIGKILL)
            await until("it is started again", two_pods(stage, namespace, without=pid), 60)
        await spender.spend("0.12")
    finally:
        enough.set()
        await asyncio.gather(*callers)
    await until_condition(cluster, namespace, *READY)
    entries = await ledger.entries()

    async def told() -> bool:
        now = await status(cluster, namespace)
        spent = sum(entry.cost for entry in entries)
        return now["spent"] == f"{spent / 10**9:.9f}".rstrip("0") and bool(now["thresholds"])

    await until("the status has all that was spent", told)
    ledger.check_sums()
    assert sum(entry.cost for entry in entries) >= Bill(spender.bill).total()["nano"]
    assert ledger.query("SELECT count(*) FROM actions WHERE acknowledged") == [(1,)]
    log = stage.log("operator").read_text()
    assert log.count('"ThresholdCrossed"') <= 1
    found = json.loads(
        await stage.kubectl("get", "events", "-n", namespace, "-o", "json",
                            "--field-selector=reason=ThresholdCrossed")
    )  # fmt: skip
    assert len(found["items"]) == 1, "no action fires twice"


def two_pods(stage: Stage, namespace: str, without: int = 0) -> Any:
    async def ask() -> bool:
        pids = {pod["pid"] for pod in pods(stage, namespace)}
        return len(pids) == 2 and without not in pids and await both_ready(stage, namespace)

    return ask


async def both_ready(stage: Stage, namespace: str) -> bool:
    state = (await stage.get("deployment", namespace, GATEWAY)).get("status", {})
    return bool(state.get("readyReplicas") == 2)
