"""A tree of budgets through an operator and a gateway: each node's own figures, and its history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from tests.support.operator_stage import (
    budget,
    create,
    start_spending,
    status,
    until,
    until_condition,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.local.stage import Stage

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]
Manifest = dict[str, Any]
TOP_UP = {
    "id": "launch",
    "amount": "0.05",
    "by": "ada",
    "reason": "the launch",
    "expires": "2999-01-01T00:00:00Z",
}


def child(namespace: str, name: str, **money: Any) -> Manifest:
    made = budget(namespace, name, parentRef={"name": "team-a"}, budget=money)
    del made["spec"]["providers"]
    return made


async def test_siblings_lend_and_each_shows_its_own_figures(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    operator: asyncio.subprocess.Process,
    kubectl: Kubectl,
) -> None:
    alpha = child(namespace, "alpha", monthlyCap="0.10", borrowing={"limit": "0.05"})
    beta = child(
        namespace, "beta", monthlyCap="0.10", borrowing={"limit": "0", "lendingLimit": "0.04"}
    )
    beta["spec"]["consumers"] = []
    root = budget(namespace, budget={"monthlyCap": "1.00"}, consumers=[])
    app = await start_spending(stage, cluster, namespace, root, alpha, beta)
    await until_condition(cluster, namespace, "Ready", "True", "Reconciled", name="alpha")

    while (answer := await app.call(words=100)).status_code == 200:
        pass
    assert answer.status_code == 402, answer.text
    assert answer.json()["error"]["budget"] == f"{namespace}/alpha"

    async def shown() -> tuple[Manifest, Manifest, Manifest] | None:
        one, other = (
            await status(cluster, namespace, "alpha"),
            await status(cluster, namespace, "beta"),
        )
        agree = "borrowed" in one and one["borrowed"] == other.get("lent")
        mine = await status(cluster, namespace)
        return (mine, one, other) if agree and one["spent"] == mine.get("spent") else None

    mine, one, other = await until("what alpha borrowed is what beta lent", shown)
    spent = Decimal(one["spent"])
    assert Decimal("0.13") < spent <= Decimal("0.14"), "its own and what beta lends, no more"
    assert Decimal(one["borrowed"]) == spent - Decimal("0.10")
    assert (other["spent"], other["phase"]) == ("0.00", "Ready")
    assert Decimal(mine["remaining"]) == 1 - spent
    table = {
        line.split()[0]: line.split()
        for line in kubectl("get", "llmbudgets", "-n", namespace, "-o", "wide").splitlines()
    }
    assert {"PARENT", "REMAINING", "LENT", "BORROWED"} <= set(table["NAME"])
    assert table["alpha"][1:3] == ["0.10", one["spent"]]
    assert table["beta"][1:3] == ["0.10", "0.00"]
    assert table["team-a"][1:3] == ["1.00", mine["spent"]]
    assert other["lent"] in table["beta"]

    alpha["spec"]["budget"]["topUps"] = [TOP_UP]
    await create(cluster, alpha)
    granted = await until("the top-up", lambda: _with(cluster, namespace, "toppedUp"))
    assert (granted["cap"], granted["toppedUp"]) == ("0.15", "0.05")
    assert "borrowed" not in granted
    assert (await app.call(words=100)).status_code == 200

    before = (await status(cluster, namespace, "alpha"))["spent"]
    kubectl("delete", "llmbudget", "alpha", "-n", namespace)
    await until("the call is refused", lambda: _refused(app))
    await create(cluster, alpha)
    again = await until("its history", lambda: _with(cluster, namespace, "spent"))
    assert Decimal(again["spent"]) >= Decimal(before)
    assert again["toppedUp"] == "0.05", "once, however often it is created"


async def _with(cluster: Cluster, namespace: str, field: str) -> Manifest | None:
    now = await status(cluster, namespace, "alpha")
    return now if field in now else None


async def _refused(app: Any) -> bool:
    return bool((await app.call(words=1)).status_code == 403)
