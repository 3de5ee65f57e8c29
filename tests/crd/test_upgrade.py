"""The CRDs change under resources that are stored, on the real API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.operator_stage import provider, secret, until_condition
from tests.support.schema_changes import BREAKS, HARMLESS, Change, definition

from llmbudget.api.crd import KINDS, crd, file_name
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import BUDGETS, Kind, kind_of
from llmbudget.local import binaries
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.stage import Stage
from llmbudget.reconcile.store import Store

Manifest = dict[str, Any]
Kubectl = Callable[..., str]

RELEASED = Path(__file__).parent / "released"

pytestmark = pytest.mark.cluster


async def take(cluster: Cluster, group: str, namespace: str, name: str, value: Any) -> str:
    """What becomes of a value: "kept", "dropped", or the API server's refusal."""
    sample = {
        "apiVersion": f"{group}/v1",
        "kind": "Sample",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {name: value},
    }
    path = f"/apis/{group}/v1/namespaces/{namespace}/samples"
    try:
        answer = await cluster._connection.send("POST", path, sample, query={"dryRun": "All"})
    except ApiError as refusal:
        return str(refusal)
    return "kept" if answer["spec"] == sample["spec"] else "dropped"


async def until_served(
    cluster: Cluster, kubectl: Kubectl, changes: dict[str, Change], group: str, *, after: bool
) -> None:
    """Set a definition, and wait until the API server judges by it: it does a little later."""
    manifest = definition(changes, after=after, group=group)
    probe = {"type": "string", "enum": [str(after)]}
    schema = manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["probe"] = probe
    kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
    name = manifest["metadata"]["name"]
    kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{name}")
    for _ in range(200):
        if await take(cluster, group, "default", "probe", str(after)) == "kept":
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the definition is not in force")


async def test_every_break_is_one_to_the_api_server(cluster: Cluster, kubectl: Kubectl) -> None:
    group = "breaks.example"
    await until_served(cluster, kubectl, BREAKS, group, after=False)
    before = {n: await take(cluster, group, "default", n, c.value) for n, c in BREAKS.items()}
    assert {name for name, answer in before.items() if answer != "kept"} == set()
    await until_served(cluster, kubectl, BREAKS, group, after=True)
    after = {n: await take(cluster, group, "default", n, c.value) for n, c in BREAKS.items()}
    assert {name for name, answer in after.items() if answer == "kept"} == set()


async def test_what_is_no_break_is_none_to_the_api_server(
    cluster: Cluster, kubectl: Kubectl
) -> None:
    group = "harmless.example"
    for state in (False, True):
        await until_served(cluster, kubectl, HARMLESS, group, after=state)
        found = {n: await take(cluster, group, "default", n, c.value) for n, c in HARMLESS.items()}
        assert set(found.values()) == {"kept"}, found


def stored() -> list[Manifest]:
    """The released version's resources, each in a namespace of its own."""
    documents = yaml.safe_load_all((RELEASED / "resources.yaml").read_text())
    found = []
    for number, document in enumerate(documents):
        document["metadata"]["namespace"] = f"stored-{number}"
        found.append(document)
    return found


async def test_resources_of_the_released_version_live_on(empty_cluster: ControlPlane) -> None:
    program = binaries.find(lambda _: None).kubectl
    async with (
        Cluster.from_kubeconfig(empty_cluster.kubeconfig) as cluster,
        Stage(empty_cluster.folder / "stage", empty_cluster.kubeconfig, program) as stage,
    ):
        for kind in KINDS:
            await stage.kubectl("apply", "--server-side", "-f", str(RELEASED / file_name(kind)))
        await stage.kubectl("wait", "--for=condition=Established", "crd", "--all")
        before = []
        for manifest in stored():
            metadata = {"name": manifest["metadata"]["namespace"]}
            await cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
            before.append(await cluster.create(manifest))
        await stage.install()
        store = Store()
        for old in before:
            kind, metadata = kind_of(old), old["metadata"]
            place: tuple[Kind, str, str] = (kind, metadata["namespace"], metadata["name"])
            now = await cluster.get(*place)
            assert now is not None
            assert now["spec"] == old["spec"]
            await cluster.merge_patch(*place, {"metadata": {"annotations": {"seen": "yes"}}})
            status = {"apiVersion": old["apiVersion"], "kind": kind.kind}
            named = {"name": metadata["name"], "namespace": metadata["namespace"]}
            await cluster.apply_status(
                status | {"metadata": named, "status": {"observedGeneration": 1}}
            )
            written = {key: old[key] for key in ("apiVersion", "kind", "spec")}
            again = await cluster.apply(written | {"metadata": named}, field_manager="kubectl")
            assert again["metadata"]["generation"] == metadata["generation"]
            (store.put_budget if kind is BUDGETS else store.put_provider)(now)
        assert store.invalid == {}
        assert [one.error for one in store.providers.values() if one.error] == []


def laxer() -> Manifest:
    """An LLMBudget's definition as an older version may have been: without these rules."""
    manifest = deepcopy(crd(KINDS[0]))
    schema = manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del schema["properties"]["budget"]["properties"]["onExceeded"]["enum"]
    del schema["properties"]["budget"]["properties"]["monthlyCap"]["pattern"]
    schema.pop("x-kubernetes-validations")
    return manifest


async def test_what_a_new_rule_forbids_lives_on_until_it_is_touched(
    empty_cluster: ControlPlane,
) -> None:
    program = binaries.find(lambda _: None).kubectl
    async with (
        Cluster.from_kubeconfig(empty_cluster.kubeconfig) as cluster,
        Stage(empty_cluster.folder / "stage", empty_cluster.kubeconfig, program) as stage,
    ):
        await stage.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(laxer()))
        await stage.kubectl("wait", "--for=condition=Established", "crd", "--all")
        await stage.kubectl("create", "namespace", "old")
        old = {
            "apiVersion": "llmbudget.io/v1alpha1",
            "kind": "LLMBudget",
            "metadata": {"name": "team-a", "namespace": "old"},
            "spec": {
                "providers": [{"name": "sim"}],
                "budget": {"monthlyCap": "1e3", "onExceeded": "Explode"},
            },
        }
        await cluster.create(old)
        await stage.install()
        await stage.allow_namespace("old")
        place = (BUDGETS, "old", "team-a")

        async def change(**fields: Any) -> str:
            try:
                await cluster.merge_patch(*place, {"spec": fields})
            except ApiError as refusal:
                return str(refusal)
            return "accepted"

        assert await change(routing={"retries": 1}) == "accepted"
        assert "spec.budget.monthlyCap" in await change(budget={"monthlyCap": "1e4"})
        assert "Unsupported value" in await change(budget={"onExceeded": "Burn"})
        for manifest in (secret("old"), provider("old")):
            await cluster.apply(manifest, field_manager="test")
        await stage.operator(allow_private=["127.0.0.1"])
        told = await until_condition(
            *(cluster, "old", "Ready", "False", "InvalidSpec"), says="onExceeded"
        )
        assert "monthlyCap" in told["message"]
        assert await change(budget={"monthlyCap": "2.00", "onExceeded": "Block"}) == "accepted"
        await until_condition(cluster, "old", "Ready", "False", "GatewayUnreachable")
