"""What the gateway's NetworkPolicy says is enforced: a stranger's connection never reaches the
gateway, and the gateway's never reaches a stranger."""

from __future__ import annotations

import pytest
from tests.conftest import Kubectl
from tests.e2e.cluster.machine import Machine
from tests.e2e.tenant import GATEWAY, PROVIDER, Tenant

from llmbudget.clients.cluster import Cluster

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 8080), 4).close()
    print("connected")
except OSError as error:
    print("failed:", type(error).__name__)
"""


async def test_strangers_stay_strangers(
    tenant: Tenant, kubectl: Kubectl, cluster: Cluster, machine: Machine | None
) -> None:
    await tenant.provide()
    await tenant.spend_by(tenant.budget("1.00"))
    await tenant.agent(PAUSE=0.5, WORDS=5)
    # A pod that no policy is about: it may connect to anybody, and anybody to it.
    stranger = Tenant(f"{tenant.namespace}-stranger", kubectl, cluster)
    await stranger.create()
    try:
        await stranger.provide()
        assert await connects(stranger, PROVIDER, to=tenant.host(PROVIDER))
        if machine is None and await connects(stranger, PROVIDER, to=tenant.host(GATEWAY)):
            pytest.skip("this cluster's network does not enforce policies")
        assert not await connects(stranger, PROVIDER, to=tenant.host(GATEWAY))
        assert await connects(tenant, GATEWAY, to=tenant.host(PROVIDER))
        assert not await connects(tenant, GATEWAY, to=stranger.host(PROVIDER))
        await tenant.spending_goes_on()
    finally:
        await stranger.delete()


async def connects(tenant: Tenant, deployment: str, *, to: str) -> bool:
    """Try to connect from a pod of a Deployment that runs the product's image."""
    python = "/opt/llmbudget/bin/python"
    said = await tenant.kubectl("exec", f"deployment/{deployment}", "--", python, "-c", CONNECT, to)
    return said.startswith("connected")
