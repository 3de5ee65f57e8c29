"""The operator on a real API server: children, drift, status, deletion, restarts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.operator_stage import (
    GATEWAY,
    PROVIDERS,
    WAITING,
    budget,
    create,
    deployment,
    provider,
    secret,
    start_operator,
    status,
    until,
    until_cap,
    until_condition,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import (
    AUTOSCALERS,
    CLAIMS,
    CLUSTER_ROLE_BINDINGS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    kind_of,
)
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.process import stop
from llmbudget.local.stage import Stage

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]
EVENTS = kind_of({"apiVersion": "events.k8s.io/v1", "kind": "Event"})
POSTGRES = {"ledger": {"postgres": {"secretKeyRef": {"name": "db", "key": "uri"}}}}


async def children(cluster: Cluster, namespace: str) -> dict[str, dict[str, Any]]:
    kinds = (
        *(CONFIG_MAPS, SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS, SERVICES, NETWORK_POLICIES),
        *(DEPLOYMENTS, CLAIMS, AUTOSCALERS, DISRUPTION_BUDGETS),
    )
    found = {}
    for kind in kinds:
        items, _ = await cluster.list(kind, namespace, "app.kubernetes.io/managed-by=llmbudget")
        found |= {f"{kind.kind}/{item['metadata']['name']}": item for item in items}
    return found


async def test_every_child_of_a_budget(
    cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    await create(cluster, secret(namespace), provider(namespace), budget(namespace, profile="smb"))
    await until_condition(cluster, namespace, *WAITING)
    found = await children(cluster, namespace)
    assert set(found) == {
        f"ConfigMap/{GATEWAY}",
        f"ConfigMap/{GATEWAY}-ca",
        f"ServiceAccount/{GATEWAY}",
        f"Role/{GATEWAY}",
        f"RoleBinding/{GATEWAY}",
        f"Service/{GATEWAY}",
        f"Service/{GATEWAY}-pods",
        f"NetworkPolicy/{GATEWAY}",
        f"Deployment/{GATEWAY}",
        "PersistentVolumeClaim/team-a-ledger",
    }
    assert await cluster.get(CLUSTER_ROLE_BINDINGS, None, f"llmbudget:{namespace}:team-a")
    for name, child in found.items():
        owners = child["metadata"].get("ownerReferences")
        assert bool(owners) == (not name.startswith("PersistentVolumeClaim")), name
    pod = found[f"Deployment/{GATEWAY}"]["spec"]["template"]
    assert pod["metadata"]["labels"]["security"] == "aci-dev"
    resources = pod["spec"]["containers"][0]["resources"]
    assert resources["requests"] == {"memory": "2Gi", "cpu": "1"}
    assert resources["limits"] == {"memory": "4Gi", "cpu": "2"}
    config = json.loads(found[f"ConfigMap/{GATEWAY}"]["data"]["gateway.json"])
    assert (await status(cluster, namespace))["configGeneration"] == config["generation"]


async def test_high_availability_and_regions(
    cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    await create(
        cluster,
        secret(namespace),
        provider(namespace),
        budget(namespace, profile="enterprise", **POSTGRES),
    )
    await until_condition(cluster, namespace, "Stalled", "True", "SecretNotFound", says="Secret db")
    await create(
        cluster,
        secret(
            namespace,
            "db",
            labels={"llmbudget.io/ledger": "true"},
            annotations={"llmbudget.io/allowed-host": "db.databases.svc"},
        ),
    )
    await until_condition(cluster, namespace, "Ready", "False", "GatewayUnreachable")
    found = await children(cluster, namespace)
    assert f"HorizontalPodAutoscaler/{GATEWAY}" in found
    assert f"PodDisruptionBudget/{GATEWAY}" in found
    assert not any(name.startswith("PersistentVolumeClaim") for name in found)
    off = {"enabled": False}
    regions = {"regions": [{"name": "us-east"}, {"name": "eu-central"}]}
    await create(
        cluster,
        budget(
            namespace,
            profile="enterprise",
            highAvailability=off,
            globalDistribution=regions,
            **POSTGRES,
        ),
    )

    async def moved() -> bool:
        names = set(await children(cluster, namespace))
        wanted = {f"Deployment/{GATEWAY}-us-east", f"Deployment/{GATEWAY}-eu-central"}
        gone = {f"HorizontalPodAutoscaler/{GATEWAY}", f"Deployment/{GATEWAY}"}
        return wanted <= names and not gone & names

    await until("the regions' gateways instead of the one", moved)


async def test_keys_by_the_environment(
    cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    by_env = {"secretDelivery": "Env"}
    await create(
        cluster, secret(namespace), provider(namespace), budget(namespace, deployment=by_env)
    )
    await until_condition(cluster, namespace, *WAITING)
    rendered = await cluster.get(SECRETS, namespace, "team-a-llm-provider-secrets")
    assert rendered is not None
    assert rendered["data"] == {"SIM_API_KEY": "c2stY2FuYXJ5"}
    found = await deployment(cluster, namespace)
    assert found is not None
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "team-a-llm-provider-secrets"}}]


async def test_the_certificate_goes_with_the_operators_authority(
    cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    await create(cluster, secret(namespace), provider(namespace), budget(namespace))
    await until_condition(cluster, namespace, *WAITING)
    made = await cluster.get(SECRETS, namespace, f"{GATEWAY}-tls")
    assert made is not None
    assert made["type"] == "kubernetes.io/tls"
    plain = {"tls": {"plainHttp": True}}
    await create(cluster, budget(namespace, deployment=plain))

    async def gone() -> bool:
        left = set(await children(cluster, namespace))
        secret_left = await cluster.get(SECRETS, namespace, f"{GATEWAY}-tls")
        return f"ConfigMap/{GATEWAY}-ca" not in left and secret_left is None

    await until("the certificate and the bundle gone", gone)
    found = await deployment(cluster, namespace)
    assert found is not None
    container = found["spec"]["template"]["spec"]["containers"][0]
    assert "--plain-http" in container["args"]
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTP"


async def test_without_its_authority_the_operator_still_lowers_a_cap(
    stage: Stage, cluster: Cluster, namespace: str
) -> None:
    place = (SECRETS, "llmbudget-system", "llmbudget-authority")

    async def certificate() -> dict[str, Any]:
        found = await cluster.get(SECRETS, namespace, f"{GATEWAY}-tls")
        assert found is not None
        return dict(found["data"])

    await create(cluster, secret(namespace), provider(namespace), budget(namespace))
    first = await start_operator(stage)
    await until_condition(cluster, namespace, *WAITING)
    await stop(first)
    before, authority = await certificate(), await cluster.get(*place)
    assert authority is not None
    spoilt = {"data": dict.fromkeys(authority["data"], "c3BvaWx0")}
    try:
        await cluster.merge_patch(*place, spoilt)
        await create(cluster, budget(namespace, budget={"monthlyCap": "0.50"}))
        await start_operator(stage, again=True)
        await until_cap(cluster, namespace, "0.50")
        await until_condition(
            *(cluster, namespace, "Ready", "False", "CertificateMissing"), says="remove its data"
        )
        assert await certificate() == before
    finally:
        await cluster.merge_patch(*place, {"data": authority["data"]})


async def test_drift_is_put_back(
    cluster: Cluster, namespace: str, kubectl: Kubectl, operator: asyncio.subprocess.Process
) -> None:
    await create(cluster, secret(namespace), provider(namespace), budget(namespace))
    await until_condition(cluster, namespace, *WAITING)
    before = await deployment(cluster, namespace)
    assert before is not None
    kubectl("set", "image", f"deployment/{GATEWAY}", "gateway=evil:latest", "-n", namespace)
    kubectl("delete", "networkpolicy", GATEWAY, "-n", namespace)
    kubectl("delete", "configmap", GATEWAY, "-n", namespace)

    async def put_back() -> bool:
        found = await children(cluster, namespace)
        image = found[f"Deployment/{GATEWAY}"]["spec"]["template"]["spec"]["containers"][0]["image"]
        wanted = {f"NetworkPolicy/{GATEWAY}", f"ConfigMap/{GATEWAY}"}
        return wanted <= set(found) and image != "evil:latest"

    await until("all three put back", put_back)


async def test_deleting_a_budget_keeps_its_ledger(
    cluster: Cluster, namespace: str, kubectl: Kubectl, operator: asyncio.subprocess.Process
) -> None:
    await create(cluster, secret(namespace), provider(namespace), budget(namespace))
    await until_condition(cluster, namespace, *WAITING)
    kubectl("delete", "llmbudget", "team-a", "-n", namespace, "--timeout=20s")

    async def gone() -> bool:
        binding = await cluster.get(CLUSTER_ROLE_BINDINGS, None, f"llmbudget:{namespace}:team-a")
        left = set(await children(cluster, namespace))
        return binding is None and left == {"PersistentVolumeClaim/team-a-ledger"}

    await until("everything but the claim gone", gone)
    await create(cluster, budget(namespace))
    await until_condition(cluster, namespace, *WAITING)
    claim = await cluster.get(CLAIMS, namespace, "team-a-ledger")
    assert claim is not None


async def test_what_a_budget_left_in_the_whole_cluster_is_swept_by_label(
    cluster: Cluster, namespace: str, stage: Stage
) -> None:
    def binding(name: str, **labels: str) -> dict[str, Any]:
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole"}
        subject = {"kind": "ServiceAccount", "name": GATEWAY, "namespace": namespace}
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name, "labels": labels},
            "roleRef": role | {"name": "system:auth-delegator"},
            "subjects": [subject],
        }

    ours = {
        "app.kubernetes.io/managed-by": "llmbudget",
        "llmbudget.io/budget": "gone",
        "llmbudget.io/budget-namespace": namespace,
    }
    foreign = f"foreign-{namespace}"
    # Left by a budget that went while no operator ran, one of them under another name.
    left = (f"llmbudget:{namespace}:gone", f"older-{namespace}")
    await create(cluster, *(binding(name, **ours) for name in left), binding(foreign))
    await start_operator(stage)

    async def swept() -> bool:
        found = [await cluster.get(CLUSTER_ROLE_BINDINGS, None, name) for name in left]
        return found == [None, None]

    await until("what was left is gone", swept)
    assert await cluster.get(CLUSTER_ROLE_BINDINGS, None, foreign)
    await cluster.delete(CLUSTER_ROLE_BINDINGS, None, foreign)


async def test_what_is_wrong_is_said_and_mended(
    cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    async def wrong(reason: str, says: str) -> None:
        await until_condition(cluster, namespace, "Ready", "False", reason, says=says)

    ladder = {"downgrade": {"ladder": ["large", "gpt-99"]}}
    await create(cluster, budget(namespace, **ladder))
    await wrong("ProviderNotFound", "There is no LLMProvider sim")
    await create(cluster, provider(namespace))
    await wrong("SecretNotFound", "Secret keys")
    await create(cluster, secret(namespace, labels={}))
    await wrong("SecretNotConsenting", 'llmbudget.io/provider-key="true"')
    elsewhere = {"llmbudget.io/allowed-host": "example.org"}
    await create(cluster, secret(namespace, annotations=elsewhere))
    await wrong("SecretNotConsenting", "llmbudget.io/allowed-host=127.0.0.1")
    await until_condition(
        *(cluster, namespace, "Ready", "False", "SecretNotConsenting"),
        **{"name": "sim", "of": PROVIDERS, "says": "127.0.0.1"},
    )
    await create(cluster, secret(namespace))
    await wrong("LadderUnknownModel", "gpt-99")
    await create(cluster, budget(namespace))
    await until_condition(cluster, namespace, *WAITING)
    unpriced = [{"name": "homemade", "maxContext": 1000, "maxOutput": 500, "defaultMaxOutput": 5}]
    await create(cluster, provider(namespace, models=unpriced))
    await wrong("ModelUnpriced", "homemade")


async def test_children_of_budgets(
    cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    def child(name: str, parent: str) -> dict[str, Any]:
        made = budget(namespace, name, parentRef={"name": parent})
        del made["spec"]["providers"]
        return made

    await create(cluster, child("orphan", "nobody"))
    found = await until_condition(
        cluster, namespace, "Ready", "False", "ParentNotFound", name="orphan"
    )
    assert f"There is no LLMBudget {namespace}/nobody" in found["message"]
    await create(cluster, child("one", "two"), child("two", "one"))
    await until_condition(cluster, namespace, "Ready", "False", "ParentCycle", name="one")
    await create(
        cluster,
        secret(namespace),
        provider(namespace),
        budget(namespace),
        child("agent", "team-a"),
    )
    await until_condition(cluster, namespace, *WAITING, name="agent")

    async def in_configuration() -> bool:
        found = await cluster.get(CONFIG_MAPS, namespace, GATEWAY)
        document = json.loads((found or {}).get("data", {}).get("gateway.json", "{}"))
        names = [account["name"] for account in document.get("accounts", ())]
        return names == [f"{namespace}/team-a", f"{namespace}/agent"]

    await until("the child's account in the gateway's configuration", in_configuration)
    above = ["team-a", *(f"level-{n}" for n in range(2, 9))]
    below = [f"level-{n}" for n in range(2, 10)]
    await create(cluster, *map(child, below, above))
    found = await until_condition(
        cluster, namespace, "Ready", "False", "ParentTooDeep", name="level-9"
    )
    assert "more than 8 budgets: attach this one higher" in found["message"]
    await until_condition(cluster, namespace, *WAITING, name="level-8")


async def test_a_namespace_without_the_role_is_named(
    cluster: Cluster, kubectl: Kubectl, namespace: str, stage: Stage
) -> None:
    kubectl("delete", "rolebinding", "--all", "-n", namespace)
    await start_operator(stage)
    await create(cluster, secret(namespace), provider(namespace), budget(namespace))
    found = await until_condition(cluster, namespace, "Ready", "False", "ApiError")
    assert f"kubectl apply -n {namespace} -k manifests/namespace" in found["message"]


async def events_about(cluster: Cluster, namespace: str, name: str) -> int:
    found, _ = await cluster.list(EVENTS, namespace)
    return sum(event["regarding"]["name"] == name for event in found)


async def test_a_restart_writes_nothing(
    cluster: Cluster, namespace: str, stage: Stage, control_plane: ControlPlane
) -> None:
    first = await start_operator(stage)
    await create(cluster, secret(namespace), provider(namespace), budget(namespace, profile="smb"))
    await until_condition(cluster, namespace, *WAITING)
    await asyncio.sleep(2)
    await stop(first)
    told = await events_about(cluster, namespace, "team-a")
    before = len(control_plane.audit_log.read_text().splitlines())
    second = await start_operator(stage)
    # Another budget shows that the second one works; by then it has looked at the first.
    await create(cluster, budget(namespace, "probe"))
    await until_condition(cluster, namespace, *WAITING, name="probe")
    await asyncio.sleep(2)
    await stop(second)
    lines = control_plane.audit_log.read_text().splitlines()[before:]
    written = [
        f"{event['verb']} {event['requestURI']}"
        for event in map(json.loads, lines)
        if event["user"]["username"].endswith(":llmbudget-operator")
        and event["verb"] in ("create", "update", "patch", "delete")
        and not event["requestURI"].endswith("/token")
        and f"/{namespace}/" in event["requestURI"]
        and "probe" not in event["requestURI"]
        and "/events?" not in event["requestURI"]
    ]
    assert not written
    assert await events_about(cluster, namespace, "team-a") == told


async def test_the_network_policy_follows_the_api_servers_addresses(
    cluster: Cluster, kubectl: Kubectl, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    await create(cluster, secret(namespace), provider(namespace), budget(namespace))
    await until_condition(cluster, namespace, *WAITING)
    slices = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"second-{namespace}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["203.0.113.7"]}],
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(slices))

    async def names_it() -> bool:
        found = await cluster.get(NETWORK_POLICIES, namespace, GATEWAY)
        return "203.0.113.7/32" in json.dumps(found)

    async def forgets_it() -> bool:
        return not await names_it()

    try:
        await until("the new address in the policy", names_it)
    finally:
        kubectl("delete", "endpointslice", f"second-{namespace}", "-n", "default")
    await until("the old address out of the policy", forgets_it)
