"""The 371OS guide's three profiles, as `examples/` has them, on a cluster: smb; enterprise, whose
gateways scale with the load and are evicted one by one; global, in four regions.

An overlay (`profiles/`) names providers that are there and requests that fit a small machine. Three
of the four regions are nodes that take pods though nothing runs them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import yaml
from tests.conftest import Kubectl, KubectlError
from tests.e2e.cluster.machine import REGION, Machine
from tests.e2e.database import SECRET, start_database
from tests.e2e.tenant import GATEWAYS, Tenant, statuses, until

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import AUTOSCALERS, CONFIG_MAPS, DEPLOYMENTS

KEY = "REPLACE-ME"
UPSTREAM = {
    "anthropic/claude-3-sonnet": {"inputPer1K": "0.003", "outputPer1K": "0.015"},
    "openai/gpt-4o-mini": {"inputPer1K": "0.0006", "outputPer1K": "0.0006"},
    "phi-4-14b": {"inputPer1K": "0", "outputPer1K": "0"},
}
REGIONS = ("us-east", "us-west", "eu-central", "ap-southeast")


class Platform(Tenant):
    """The namespace that the examples make, and three around it: providers, database, users."""

    def __init__(self, kubectl: Kubectl, cluster: Cluster) -> None:
        super().__init__("llm-platform", kubectl, cluster)
        self.providers = Tenant("localai", kubectl, cluster)
        self.databases = Tenant("databases", kubectl, cluster)
        self.users = Tenant("apps", kubectl, cluster)

    async def install(self, profile: str, budget: str, *, database: bool = False) -> None:
        """Apply a profile's example with what is around it, and wait until it is Ready."""
        for each in (self.providers, self.databases, self.users):
            await each.create()
        await self.providers.start_provider("localai", UPSTREAM, KEY)
        ledger = await start_database(self.databases) if database else {}
        text = await self.kubectl("kustomize", f"tests/e2e/profiles/{profile}")
        documents = list(yaml.safe_load_all(text))
        for each in documents:
            if each["kind"] == "Secret" and each["metadata"]["name"] == SECRET:
                each["stringData"] |= ledger
        await self.apply(*documents)
        await self.until_ready(180, budget)

    async def delete(self) -> None:
        """Delete all four, and wait: the next profile has the same names."""
        await super().delete()
        for each in (self.users, self.databases, self.providers):
            await each.delete()
        for each in (self, self.users, self.databases, self.providers):
            await each.gone()

    async def spend(self, service: str, **environment: Any) -> None:
        """Start an application in `apps` that calls a gateway by its Service."""
        budget = service.partition("-gateway")[0]
        authority = json.loads(
            await self.kubectl("get", "configmap", f"{budget}-gateway-ca", "-o", "json")
        )
        copy = self.users.object("v1", "ConfigMap", f"{budget}-gateway-ca", data=authority["data"])
        await self.users.apply(copy)
        server = f"{service}.{self.namespace}.svc"
        await self.users.agent(budget=budget, server=server, **environment)
        await self.users.spending_goes_on()

    async def configuration(self, budget: str) -> dict[str, Any]:
        """Read what the operator told the gateways."""
        found = await self.cluster.get(CONFIG_MAPS, self.namespace, f"{budget}-gateway")
        assert found is not None
        read: dict[str, Any] = json.loads(found["data"]["gateway.json"])
        return read

    async def told_posthog(self, budget: str) -> tuple[str, str]:
        """Read where the gateways send events, and which share of them."""
        told = (await self.configuration(budget))["posthog"]
        return told["host"], told["sampleRate"]


@pytest.fixture
async def platform(
    request: pytest.FixtureRequest, kubectl: Kubectl, cluster: Cluster, installed: None
) -> AsyncIterator[Platform]:
    made = Platform(kubectl, cluster)
    failed = request.session.testsfailed
    yield made
    if request.session.testsfailed > failed:
        for each in (made, made.users):
            print(await each.describe())
    await made.delete()


async def test_smb(platform: Platform) -> None:
    await platform.install("smb", "company")
    await platform.spend("company-gateway")
    assert len(await platform.pods(GATEWAYS)) == 1
    claim = json.loads(await platform.kubectl("get", "pvc", "company-ledger", "-o", "json"))
    assert claim["status"]["phase"] == "Bound"
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    assert Decimal((await platform.status("company"))["cap"]) == 100
    assert await platform.told_posthog("company") == ("https://us.i.posthog.com", "0.5")
    assert set(statuses(await platform.users.stop_agent())) == {200}


async def test_enterprise(platform: Platform, node: Machine) -> None:
    node.start_metrics_server()
    await platform.install("enterprise", "org", database=True)
    gateway = "org-gateway"
    scaler = await platform.cluster.get(AUTOSCALERS, platform.namespace, gateway)
    assert scaler is not None
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (3, 10)

    async def replicas() -> int:
        found = await platform.cluster.get(DEPLOYMENTS, platform.namespace, gateway)
        return int((found or {}).get("status", {}).get("readyReplicas", 0))

    async def rested() -> bool:
        return await replicas() == len(await platform.pods(GATEWAYS)) == 3

    await until("the autoscaler has come down to three", rested, 120)
    await platform.spend(gateway, name="researcher", WORDS=5, WORKERS=12, PAUSE=0)

    async def scaled() -> bool:
        return await replicas() >= 6

    await until("the load has doubled the gateways", scaled, 180)
    assert set(statuses(await platform.users.stop_agent())) == {200}

    await until("the autoscaler has come down again", rested, 180)

    async def allowed() -> bool:
        asked = ("get", "pdb", gateway, "-o", "jsonpath={.status.disruptionsAllowed}")
        return await platform.kubectl(*asked) == "1"

    await until("one pod may go", allowed, 30)
    first, second = [pod["metadata"]["name"] for pod in (await platform.pods(GATEWAYS))[:2]]
    await evict(platform, first)
    with pytest.raises(KubectlError, match="disruption budget"):
        await evict(platform, second)
    await until("another has taken the place of the one that was evicted", rested, 60)
    assert await platform.told_posthog("org") == ("https://us.i.posthog.com", "1.0")


async def evict(tenant: Tenant, pod: str) -> None:
    """Ask for a pod's end, as `kubectl drain` does."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": tenant.namespace},
    }
    path = f"/api/v1/namespaces/{tenant.namespace}/pods/{pod}/eviction"
    await tenant.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


async def test_global(platform: Platform, node: Machine) -> None:
    for region in REGIONS:
        if region != REGION:
            node.add_region(region, ("a", "b"))
    await platform.install("global", "world", database=True)
    for region in REGIONS:
        await platform.rolled_out(f"world-gateway-{region}", 240)
    placed = Counter[tuple[str, str]]()
    for pod in await platform.pods(GATEWAYS):
        region = pod["metadata"]["labels"]["topology.kubernetes.io/region"]
        placed[region, pod["spec"]["nodeName"]] += 1
    print(f"\n{dict(placed)}")
    zones = {(region, f"{region}-{zone}"): 2 for region in REGIONS[1:] for zone in "ab"}
    assert placed == {(REGION, "node-1"): 4} | zones

    await platform.spend(f"world-gateway-{REGION}", LLM_MODEL="auto", WORKERS=4)
    assert await platform.told_posthog("world") == ("https://us.i.posthog.com", "0.8")
    told = await platform.configuration("world")
    assert told["tracing"] == "http://jaeger-collector.global.svc:4318/v1/traces"
    assert set(statuses(await platform.users.stop_agent())) == {200}
