"""What goes wrong around the operator: deletions half way, meddling, refusals, many namespaces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.operator_stage import (
    budget,
    condition,
    create,
    deployment,
    model_of,
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
from llmbudget.clients.kinds import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, kind_of
from llmbudget.local.stage import Stage

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]
Manifest = dict[str, Any]
WAITING = ("Ready", "False", "GatewayUnreachable")
NAMESPACES = kind_of({"apiVersion": "v1", "kind": "Namespace"})


def downgrading(namespace: str, name: str = "team-a", **more: Any) -> Manifest:
    thresholds = [{"percentage": 50, "action": "downgrade_models"}]
    target = {
        "namespace": namespace,
        "selector": {"matchLabels": {"app": "researcher"}},
        "env": "LLM_MODEL",
    }
    made = budget(
        namespace,
        name,
        budget={"monthlyCap": "0.10", "alertThresholds": thresholds},
        downgrade={"ladder": ["large", "medium", "small"]},
        targets=[target],
    )
    made["spec"] |= more
    return made


async def gone(cluster: Cluster, namespace: str, name: str) -> bool:
    return await cluster.get(BUDGETS, namespace, name) is None


async def test_a_child_that_is_deleted_gives_its_model_back(
    stage: Stage,
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    operator: asyncio.subprocess.Process,
) -> None:
    root = budget(namespace, budget={"monthlyCap": "100.00"}, consumers=[])
    child = downgrading(namespace, "agent", parentRef={"name": "team-a"})
    del child["spec"]["providers"]
    leaf = downgrading(namespace, "leaf", parentRef={"name": "agent"}, consumers=[], targets=[])
    del leaf["spec"]["providers"]
    await create(cluster, workload(namespace, f"{namespace}/agent"))
    app = await start_spending(stage, cluster, namespace, root, child, leaf)
    await app.spend("0.06")
    await until_model(cluster, namespace, "medium")
    kubectl("delete", "llmbudget", "agent", "-n", namespace, "--timeout=30s")
    assert model_of(await deployment(cluster, namespace, "researcher")) == "large"
    await until_condition(cluster, namespace, "Ready", "False", "ParentNotFound", name="leaf")


async def test_a_model_is_given_back_by_a_budget_that_went_without_its_finalizer(
    stage: Stage,
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    operator: asyncio.subprocess.Process,
) -> None:
    """Whatever let the budget go: the Deployment says that it is changed, and by whom."""
    changed = workload(namespace, f"{namespace}/gone")
    changed["metadata"]["annotations"] |= {
        "llmbudget.io/original-env": json.dumps({"name": "LLM_MODEL", "value": "large"}),
        "llmbudget.io/downgraded-to": "small",
        "llmbudget.io/downgraded-container": "main",
    }
    env = changed["spec"]["template"]["spec"]["containers"][0]["env"]
    env[1]["value"] = "small"
    await create(cluster, changed)
    found = await until_model(cluster, namespace, "large")
    assert "llmbudget.io/downgraded-to" not in found["metadata"]["annotations"]


async def test_a_finalizer_that_someone_removes_comes_back(
    stage: Stage,
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    operator: asyncio.subprocess.Process,
) -> None:
    await create(cluster, workload(namespace, f"{namespace}/team-a"))
    app = await start_spending(stage, cluster, namespace, downgrading(namespace))
    await app.spend("0.06")
    await until_model(cluster, namespace, "medium")
    remove = json.dumps({"metadata": {"finalizers": None}})
    kubectl("patch", "llmbudget", "team-a", "-n", namespace, "--type=merge", "-p", remove)

    async def back() -> bool:
        found = await cluster.get(BUDGETS, namespace, "team-a")
        return bool((found or {})["metadata"].get("finalizers"))

    await until("the finalizer is back", back)
    broken = {"spec": {"budget": {"timeZone": "Mars/Base"}}}
    kubectl(
        *("patch", "llmbudget", "team-a", "-n", namespace, "--type=merge"),
        *("-p", json.dumps(broken)),
    )
    await until_condition(cluster, namespace, "Ready", "False", "InvalidSpec", says="Mars/Base")
    assert model_of(await deployment(cluster, namespace, "researcher")) == "medium"
    # Its deletion needs no right in the namespace but that to its targets.
    kubectl("delete", "rolebinding", "llmbudget-operator", "-n", namespace)
    kubectl("delete", "llmbudget", "team-a", "-n", namespace, "--timeout=30s")
    assert model_of(await deployment(cluster, namespace, "researcher")) == "large"


async def test_a_policy_that_refuses_the_change_holds_nothing_up(
    stage: Stage,
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    operator: asyncio.subprocess.Process,
) -> None:
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": f"frozen-{namespace}"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["apps"],
                        "apiVersions": ["v1"],
                        "operations": ["UPDATE"],
                        "resources": ["deployments"],
                    }
                ]
            },
            "validations": [
                {
                    "expression": "object.metadata.name != 'researcher'"
                    " || object.spec == oldObject.spec",
                    "message": "researcher is frozen",
                }
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": f"frozen-{namespace}"},
        "spec": {
            "policyName": f"frozen-{namespace}",
            "validationActions": ["Deny"],
            "matchResources": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
            },
        },
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    kubectl("apply", "-f", "-", stdin=json.dumps(binding))
    await create(cluster, workload(namespace, f"{namespace}/team-a"))
    app = await start_spending(stage, cluster, namespace, downgrading(namespace))
    await asyncio.sleep(1)
    await app.spend("0.06")
    found = await until_condition(
        cluster, namespace, "Ready", "False", "TargetNotConsenting", says="frozen"
    )
    assert "researcher is frozen" in found["message"]
    assert (await app.call("large", 1)).headers["x-llmbudget-model"] == "medium"
    kubectl("delete", "llmbudget", "team-a", "-n", namespace, "--timeout=30s")
    kubectl("delete", "validatingadmissionpolicybinding", f"frozen-{namespace}")


async def test_more_namespaces_than_a_connection_pool_has_room_for(
    stage: Stage, cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    places = [f"{namespace}-{number}" for number in range(12)]
    for place in places:
        await stage.allow_namespace(place)
        await create(cluster, secret(place), provider(place), budget(place))
    for place in places:
        await until_condition(cluster, place, *WAITING)
    lowered = budget(places[0], budget={"monthlyCap": "0.50"})
    await create(cluster, lowered)

    async def rendered() -> bool:
        found = await cluster.get(CONFIG_MAPS, places[0], "team-a-gateway")
        document = json.loads((found or {})["data"]["gateway.json"])
        return bool(document["accounts"][0]["capNano"] == 500_000_000)

    await until("the lowered cap in the gateway's configuration", rendered)
    for place in places:
        await cluster.delete(NAMESPACES, None, place)


async def test_what_is_anothers_is_left_alone(
    stage: Stage, cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    metadata = {"name": "team-a-gateway", "namespace": namespace}
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}}
    await create(cluster, theirs, secret(namespace), provider(namespace), budget(namespace))
    said = await until_condition(cluster, namespace, "Ready", "False", "NameTaken")
    assert "ConfigMap team-a-gateway" in said["message"]
    found = await cluster.get(CONFIG_MAPS, namespace, "team-a-gateway")
    assert (found or {})["data"] == {"a": "b"}
    assert condition(await status(cluster, namespace), "Stalled")["status"] == "True"
    assert await cluster.get(DEPLOYMENTS, namespace, "team-a-gateway") is None


async def test_a_poisoned_budget_delays_nobody(
    stage: Stage,
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    operator: asyncio.subprocess.Process,
) -> None:
    """One child of each poisoned budget is refused, whatever is tried."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "full"},
        "spec": {"hard": {"persistentvolumeclaims": "0"}},
    }
    poisoned, well = f"{namespace}-poisoned", namespace
    await stage.allow_namespace(poisoned)
    kubectl("apply", "-n", poisoned, "-f", "-", stdin=json.dumps(quota))
    await create(cluster, secret(poisoned), provider(poisoned))
    for number in range(10):
        await create(cluster, budget(poisoned, f"bad-{number}"))
    await until_condition(cluster, poisoned, "Ready", "False", "ApiError", name="bad-9")
    await create(cluster, secret(well), provider(well), budget(well))
    await until_condition(cluster, well, *WAITING)
    said = await status(cluster, poisoned, "bad-0")
    message = condition(said, "Stalled")["message"]
    assert "exceeded quota" in message
    assert "It is tried again in" in message
    kubectl("delete", "resourcequota", "full", "-n", poisoned)
    # Any event of its own brings it back within seconds, however long its backoff is.
    kubectl("annotate", "llmbudget", "bad-0", "-n", poisoned, "note=mended")
    await until_condition(cluster, poisoned, *WAITING, name="bad-0")
    await cluster.delete(NAMESPACES, None, poisoned)


async def test_a_namespace_goes_with_a_changed_target(
    stage: Stage,
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    operator: asyncio.subprocess.Process,
) -> None:
    """The finalizer never holds a deletion up: neither a gateway nor the target is there then."""
    place = f"{namespace}-goes"
    await stage.allow_namespace(place)
    await create(cluster, workload(place, f"{place}/team-a"))
    app = await start_spending(stage, cluster, place, downgrading(place))
    await app.spend("0.06")
    await until_model(cluster, place, "medium")
    kubectl("delete", "namespace", place, "--timeout=45s")
    await create(cluster, secret(namespace), provider(namespace), budget(namespace))
    await until_condition(cluster, namespace, *WAITING)
