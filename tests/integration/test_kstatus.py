"""What kstatus (Flux, cli-utils) computes for resources that a real operator has looked at."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
from typing import Any

import pytest
from tests.support.operator_stage import READY, budget, create, provider, secret, until_condition

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, PROVIDERS, Kind
from llmbudget.local import binaries
from llmbudget.local.stage import Stage

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),  # kstatus takes a minute to build where it is not in the cache yet
]
Manifest = dict[str, Any]


def computed(document: Manifest) -> tuple[str, str]:
    """Ask kstatus for a resource's status and message."""
    said = subprocess.run(
        [binaries.tool("kstatus", print)],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    status, _, message = said.rstrip("\n").partition("\t")
    return status, message


async def read(cluster: Cluster, kind: Kind, namespace: str, name: str) -> Manifest:
    found = await cluster.get(kind, namespace, name)
    assert found is not None
    return found


async def test_a_budget_from_its_first_day_to_its_last(
    cluster: Cluster, namespace: str, stage: Stage, operator: asyncio.subprocess.Process
) -> None:
    await create(cluster, budget(namespace))
    await until_condition(cluster, namespace, "Stalled", "True", "ProviderNotFound")
    status, message = computed(await read(cluster, BUDGETS, namespace, "team-a"))
    assert status == "Failed"
    assert "sim" in message

    await create(cluster, secret(namespace), provider(namespace))
    await until_condition(cluster, namespace, "Ready", "False", "GatewayUnreachable")
    status, message = computed(await read(cluster, BUDGETS, namespace, "team-a"))
    assert status == "InProgress"
    assert "gateway" in message

    await stage.gateway(f"{namespace}/team-a")
    await until_condition(cluster, namespace, *READY)
    ready = await read(cluster, BUDGETS, namespace, "team-a")
    assert computed(ready)[0] == "Current"
    assert computed(await read(cluster, PROVIDERS, namespace, "sim"))[0] == "Current"

    changed = copy.deepcopy(ready)
    changed["metadata"]["generation"] += 1
    assert computed(changed)[0] == "InProgress"
    ready["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z"
    assert computed(ready)[0] == "Terminating"


async def test_a_provider_that_nobody_may_use(
    cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    await create(cluster, provider(namespace), budget(namespace))
    await until_condition(
        cluster, namespace, "Stalled", "True", "SecretNotFound", name="sim", of=PROVIDERS
    )
    status, message = computed(await read(cluster, PROVIDERS, namespace, "sim"))
    assert status == "Failed"
    assert "keys" in message
