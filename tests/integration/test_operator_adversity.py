"""What goes wrong around the operator: deletions half way, meddling, refusals, many namespaces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.support.operator_stage import (
    WAITING,
    Spender,
    budget,
    condition,
    create,
    create_with_provider,
    deployment,
    model_of,
    start_spending,
    status,
    until,
    until_cap,
    until_condition,
    until_model,
    workload,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, kind_of
from llmbudget.local.stage import Stage

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator")]
Kubectl = Callable[..., str]
Manifest = dict[str, Any]
NewNamespace = Callable[[str], Awaitable[str]]
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


@pytest.fixture
async def new_namespace(
    stage: Stage, cluster: Cluster, namespace: str
) -> AsyncIterator[NewNamespace]:
    """Makes further namespaces that the operator may manage, which are removed afterwards."""
    made: list[str] = []

    async def make(suffix: str) -> str:
        made.append(f"{namespace}-{suffix}")
        await stage.allow_namespace(made[-1])
        return made[-1]

    yield make
    for each in made:
        await cluster.delete(NAMESPACES, None, each)


@pytest.fixture
async def moved(stage: Stage, cluster: Cluster, namespace: str) -> Spender:
    """A budget that has moved its workload to a cheaper model."""
    return await start_moved(stage, cluster, namespace)


async def start_moved(stage: Stage, cluster: Cluster, namespace: str) -> Spender:
    await create(cluster, workload(namespace, f"{namespace}/team-a"))
    app = await start_spending(stage, cluster, namespace, downgrading(namespace))
    await app.spend("0.06")
    await until_model(cluster, namespace, "medium")
    return app


@pytest.fixture
def frozen(kubectl: Kubectl, namespace: str) -> Iterator[None]:
    """A policy of the cluster's that lets nobody change the workload."""
    name = f"frozen-{namespace}"
    deployments = {
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "operations": ["UPDATE"],
        "resources": ["deployments"],
    }
    unchanged = "object.metadata.name != 'researcher' || object.spec == oldObject.spec"
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [deployments]},
        "validations": [{"expression": unchanged, "message": "researcher is frozen"}],
    }
    binding = {
        "policyName": name,
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": here},
    }
    kinds = {"ValidatingAdmissionPolicy": policy, "ValidatingAdmissionPolicyBinding": binding}
    for kind, spec in kinds.items():
        manifest = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind}
        manifest |= {"metadata": {"name": name}, "spec": spec}
        kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    yield
    kubectl("delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", name)


async def test_a_child_that_is_deleted_gives_its_model_back(
    stage: Stage, cluster: Cluster, kubectl: Kubectl, namespace: str
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
    cluster: Cluster, namespace: str
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
    cluster: Cluster, kubectl: Kubectl, namespace: str, moved: Spender
) -> None:
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
    stage: Stage, cluster: Cluster, kubectl: Kubectl, namespace: str, frozen: None
) -> None:
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


async def test_more_namespaces_than_a_connection_pool_has_room_for(
    cluster: Cluster, new_namespace: NewNamespace
) -> None:
    places = [await new_namespace(str(number)) for number in range(12)]
    for place in places:
        await create_with_provider(cluster, place)
    for place in places:
        await until_condition(cluster, place, *WAITING)
    await create(cluster, budget(places[0], budget={"monthlyCap": "0.50"}))
    await until_cap(cluster, places[0], "0.50")


async def test_what_is_anothers_is_left_alone(cluster: Cluster, namespace: str) -> None:
    metadata = {"name": "team-a-gateway", "namespace": namespace}
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}}
    await create(cluster, theirs)
    await create_with_provider(cluster, namespace)
    said = await until_condition(cluster, namespace, "Ready", "False", "NameTaken")
    assert "ConfigMap team-a-gateway" in said["message"]
    found = await cluster.get(CONFIG_MAPS, namespace, "team-a-gateway")
    assert (found or {})["data"] == {"a": "b"}
    assert condition(await status(cluster, namespace), "Stalled")["status"] == "True"
    assert await cluster.get(DEPLOYMENTS, namespace, "team-a-gateway") is None


async def test_a_poisoned_budget_delays_nobody(
    cluster: Cluster, kubectl: Kubectl, namespace: str, new_namespace: NewNamespace
) -> None:
    """One child of each poisoned budget is refused, whatever is tried."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "full"},
        "spec": {"hard": {"persistentvolumeclaims": "0"}},
    }
    poisoned, well = await new_namespace("poisoned"), namespace
    kubectl("apply", "-n", poisoned, "-f", "-", stdin=json.dumps(quota))
    bad = (budget(poisoned, f"bad-{number}") for number in range(10))
    await create_with_provider(cluster, poisoned, *bad)
    await until_condition(cluster, poisoned, "Ready", "False", "ApiError", name="bad-9")
    await create_with_provider(cluster, well)
    await until_condition(cluster, well, *WAITING)
    said = await status(cluster, poisoned, "bad-0")
    message = condition(said, "Stalled")["message"]
    assert "exceeded quota" in message
    assert "It is tried again in" in message
    kubectl("delete", "resourcequota", "full", "-n", poisoned)
    # Any event of its own brings it back within seconds, however long its backoff is.
    kubectl("annotate", "llmbudget", "bad-0", "-n", poisoned, "note=mended")
    await until_condition(cluster, poisoned, *WAITING, name="bad-0")


async def test_a_namespace_goes_with_a_changed_target(
    stage: Stage,
    cluster: Cluster,
    kubectl: Kubectl,
    namespace: str,
    new_namespace: NewNamespace,
) -> None:
    """The finalizer never holds a deletion up: neither a gateway nor the target is there then."""
    place = await new_namespace("goes")
    await start_moved(stage, cluster, place)
    kubectl("delete", "namespace", place, "--timeout=45s")
    await create_with_provider(cluster, namespace)
    await until_condition(cluster, namespace, *WAITING)
