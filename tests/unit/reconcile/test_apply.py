"""Only what differs is written, and only what is ours and unwanted is deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.worlds import Manifest, read, serving_of, world_of
from tests.unit.reconcile.api_server import ApiServer

from llmbudget.clients.cluster import ApiError
from llmbudget.contract.config import CONFIG_KEY
from llmbudget.decide.validity.chain import findings
from llmbudget.decide.world import Budget
from llmbudget.reconcile.apply import Outcome, OwnerGone, agrees, apply_children
from llmbudget.reconcile.live import Live
from llmbudget.render.children import children
from llmbudget.render.gateway_config import gateway_config

SCENARIOS = Path(__file__).parents[2] / "golden" / "scenarios"
GATEWAY = "team-a-gateway"
LEDGER = "team-a-ledger"
BINDING = "llmbudget:llm-platform:team-a"
SCALED = {"highAvailability": {"enabled": True}}


def wanted(**spec: Any) -> tuple[Budget, list[Manifest]]:
    """A root budget with its children, rendered."""
    documents = read(SCENARIOS / "platform.yaml", SCENARIOS / "minimal.yaml")
    documents[-1]["spec"] |= spec
    world = world_of(documents)
    found = findings(world)
    config = gateway_config(world, found)
    return world.root, list(children(world, found, config, {}, serving_of(world)))


async def bring(server: ApiServer, live: Live, **spec: Any) -> Outcome:
    root, manifests = wanted(**spec)
    return await apply_children(server, live, root, manifests)


@pytest.fixture
async def server() -> ApiServer:
    """Has all children of the smallest budget, and no record of how they came."""
    made = ApiServer()
    await bring(made, made.live())
    made.applied.clear()
    return made


async def test_a_new_budgets_children_are_all_written_in_the_order_given() -> None:
    server = ApiServer()
    root, manifests = wanted()
    live = server.live()
    assert (await apply_children(server, live, root, manifests)).written == len(manifests)
    assert server.applied == [(item["kind"], item["metadata"]["name"]) for item in manifests]
    assert (await apply_children(server, live, root, manifests)).written == 0
    assert server.deleted == []


async def test_what_is_as_wanted_is_not_written_again(server: ApiServer) -> None:
    assert (await bring(server, server.live())).written == 0
    assert server.applied == []


@pytest.mark.parametrize(
    ("key", "path", "value"),
    [
        (("Deployment", GATEWAY), "spec.replicas", 0),
        (("ConfigMap", GATEWAY), "data", {"gateway.json": "{}"}),
        (("ConfigMap", GATEWAY), "metadata.ownerReferences", []),
        (("NetworkPolicy", GATEWAY), "spec.policyTypes", ["Egress"]),
        (("NetworkPolicy", GATEWAY), "metadata.labels", {}),
        (("Service", GATEWAY), "spec.selector", {"app": "mine"}),
    ],
)
async def test_only_what_someone_changed_is_written(
    server: ApiServer, key: tuple[str, str], path: str, value: object
) -> None:
    here = server.ours[key]
    *above, last = path.split(".")
    for step in above:
        here = here[step]
    here[last] = value
    assert (await bring(server, server.live())).written == 1
    assert server.applied == [key]
    assert (await bring(server, server.live())).written == 0


async def test_what_someone_deleted_is_written(server: ApiServer) -> None:
    del server.ours["Service", GATEWAY]
    assert (await bring(server, server.live())).written == 1
    assert server.applied == [("Service", GATEWAY)]


async def test_what_others_add_beside_ours_is_no_difference(server: ApiServer) -> None:
    server.others["Deployment", GATEWAY] = {
        "metadata": {"annotations": {"deployment.kubernetes.io/revision": "3"}},
        "spec": {"progressDeadlineSeconds": 600},
        "status": {"readyReplicas": 1},
    }
    assert (await bring(server, server.live())).written == 0


async def test_a_refusal_ends_the_round_before_what_depends_on_it() -> None:
    server = ApiServer()
    server.refusing["ConfigMap"] = ApiError(403, "Forbidden", "no")
    with pytest.raises(ApiError, match="Forbidden"):
        await bring(server, server.live())
    assert "Deployment" not in {kind for kind, _ in server.applied}


# Autoscaling.


async def test_replicas_are_handed_over_before_they_are_left_out(server: ApiServer) -> None:
    server.ours["Deployment", GATEWAY]["spec"]["replicas"] = 4
    image = {"image": "registry.example/other:2"}
    await bring(server, server.live(), **SCALED, deployment=image)
    (handed,) = server.handed_over
    assert (handed["kind"], handed["metadata"]["name"]) == ("Deployment", GATEWAY)
    assert handed["spec"] == {"replicas": 4}
    assert "replicas" not in server.ours["Deployment", GATEWAY]["spec"]
    assert server.object("Deployment", GATEWAY)["spec"]["replicas"] == 4


async def test_an_autoscaler_that_has_the_replicas_already_keeps_them(server: ApiServer) -> None:
    server.refusing["llmbudget-handover"] = ApiError(409, "Conflict", "owned by the autoscaler")
    image = {"image": "registry.example/other:2"}
    await bring(server, server.live(), **SCALED, deployment=image)
    assert ("Deployment", GATEWAY) in server.applied


async def test_replicas_that_cannot_be_handed_over_are_not_left_out(server: ApiServer) -> None:
    server.refusing["llmbudget-handover"] = ApiError(500, "Internal", "etcd is away")
    image = {"image": "registry.example/other:2"}
    with pytest.raises(ApiError, match="etcd is away"):
        await bring(server, server.live(), **SCALED, deployment=image)
    assert ("Deployment", GATEWAY) not in server.applied


async def test_a_new_deployment_and_fixed_replicas_have_nothing_to_hand_over() -> None:
    server = ApiServer()
    await bring(server, server.live(), **SCALED)
    await bring(server, server.live(), deployment={"replicas": 2})
    assert server.handed_over == []


# The ledger's claim.


async def test_a_claim_keeps_what_cannot_change_and_may_grow(server: ApiServer) -> None:
    kept = {"accessModes": ["ReadWriteOnce"], "storageClassName": "slow"}
    server.ours["PersistentVolumeClaim", LEDGER]["spec"] |= kept
    await bring(server, server.live())
    assert server.ours["PersistentVolumeClaim", LEDGER]["spec"].items() >= kept.items()
    assert (await bring(server, server.live())).written == 0
    grown = await bring(server, server.live(), ledger={"sqlite": {"storage": "20Gi"}})
    assert grown.written == 1
    spec = server.ours["PersistentVolumeClaim", LEDGER]["spec"]
    assert spec == kept | {"resources": {"requests": {"storage": "20Gi"}}}


async def test_a_claim_never_shrinks(server: ApiServer) -> None:
    larger = {"requests": {"storage": "20Gi"}}
    server.ours["PersistentVolumeClaim", LEDGER]["spec"]["resources"] = larger
    await bring(server, server.live())
    assert server.ours["PersistentVolumeClaim", LEDGER]["spec"]["resources"] == larger


# What is swept.


async def test_what_is_no_longer_wanted_is_deleted_and_forgotten(server: ApiServer) -> None:
    await bring(server, server.live(), **SCALED)
    live = server.live()
    assert (await bring(server, live)).written >= 2
    uid = f"uid-of-{GATEWAY}"
    assert sorted(server.deleted) == [
        ("HorizontalPodAutoscaler", GATEWAY, uid),
        ("PodDisruptionBudget", GATEWAY, uid),
    ]
    assert (await bring(server, live)).written == 0


async def test_the_ledgers_claim_outlives_everything(server: ApiServer) -> None:
    root, _ = wanted()
    owner = server.ours["Service", GATEWAY]["metadata"]["ownerReferences"]
    server.ours["PersistentVolumeClaim", LEDGER]["metadata"]["ownerReferences"] = owner
    await apply_children(server, server.live(), root, [])
    assert list(server.ours) == [("PersistentVolumeClaim", LEDGER)]


async def test_a_binding_of_the_cluster_is_swept_by_its_labels(server: ApiServer) -> None:
    root, manifests = wanted()
    manifests = [item for item in manifests if item["kind"] != "ClusterRoleBinding"]
    assert (await apply_children(server, server.live(), root, manifests)).written == 1
    assert server.deleted == [("ClusterRoleBinding", BINDING, f"uid-of-{BINDING}")]


@pytest.mark.parametrize(
    "metadata",
    [
        {"ownerReferences": []},
        {"ownerReferences": [{"apiVersion": "llmbudget.io/v1alpha1", "uid": "an earlier one's"}]},
        {"ownerReferences": [{"apiVersion": "apps/v1", "uid": "uid-6"}]},
        {"labels": {}},
        {"labels": {"llmbudget.io/budget": "other", "llmbudget.io/budget-namespace": "x"}},
    ],
    ids=["no owner", "former budget", "other kind", "no labels", "other budget"],
)
async def test_what_is_not_ours_stays(server: ApiServer, metadata: dict[str, Any]) -> None:
    root, _ = wanted()
    assert root.uid == "uid-6"
    mine = next(one for one in server.ours.values() if one["kind"] == "Service")
    theirs = mine | {"metadata": mine["metadata"] | {"name": "theirs"} | metadata}
    server.ours["Service", "theirs"] = theirs
    assert (await bring(server, server.live())).written == 0
    assert server.deleted == []


# Agreement.


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (1, 1),
        ({"a": 1}, {"a": 1, "default": 2}),
        ({"a": {"b": [{"c": 1}]}}, {"a": {"b": [{"c": 1, "d": 2}], "e": 3}}),
        ([], []),
        ({"a": None, "b": "", "c": {}, "d": []}, {}),
        ("1000m", "1"),
        ("1Gi", "1024Mi"),
        ("0.5", "500m"),
    ],
)
def test_defaults_and_other_spellings_agree(asked: object, found: object) -> None:
    assert agrees(asked, found)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (1, None),
        (True, None),
        (False, None),
        ("", "a"),
        ("1", 1),
        ({"a": 1}, {}),
        ({"a": 1}, None),
        ({"a": 1}, [1]),
        ([1], {"a": 1}),
        ([1, 2], [2, 1]),
        ([1], [1, 2]),
        ([1], None),
        ([{"a": 1}], [{"a": 2}]),
        ("10Gi", "10G"),
        ("500m", "501m"),
        ("1m", "1M"),
        ("image:1.0", "image:1.00"),
        ("10.0.0.1/32", "10.0.0.2/32"),
    ],
)
def test_what_differs_does_not_agree(asked: object, found: object) -> None:
    assert not agrees(asked, found)


@pytest.mark.parametrize("key", ["allowPrivilegeEscalation", "automountServiceAccountToken"])
async def test_a_removed_safeguard_is_put_back(server: ApiServer, key: str) -> None:
    pod = server.ours["Deployment", GATEWAY]["spec"]["template"]["spec"]
    here = pod if key in pod else pod["containers"][0]["securityContext"]
    assert here.pop(key) is False
    assert (await bring(server, server.live())).written == 1


@pytest.mark.parametrize("field", [{"nodeSelector": {"a": "b"}}, {"priorityClassName": "high"}])
async def test_what_the_budget_no_longer_says_is_removed(field: dict[str, Any]) -> None:
    server = ApiServer()
    await bring(server, server.live(), deployment=field)
    await bring(server, server.live())
    assert not set(field) & set(server.ours["Deployment", GATEWAY]["spec"]["template"]["spec"])


async def test_delivered_keys_are_removed_after_a_restart_too() -> None:
    server = ApiServer()
    await bring(server, server.live(), deployment={"secretDelivery": "Env"})
    delivered = ("Secret", "team-a-llm-provider-secrets")
    assert delivered in server.ours
    await bring(server, server.live())
    assert delivered not in server.ours


# Whose it is.


async def test_nothing_is_written_for_a_budget_that_is_gone(server: ApiServer) -> None:
    server.budget = "another one's"
    del server.ours["Service", GATEWAY]
    with pytest.raises(OwnerGone):
        await bring(server, server.live())
    assert server.applied == []


THEIRS = {"metadata": {"name": GATEWAY, "labels": {"app": "theirs"}}}


@pytest.mark.parametrize("kind", ["ConfigMap", "Deployment", "NetworkPolicy", "ServiceAccount"])
async def test_nobodys_place_is_taken(kind: str) -> None:
    server = ApiServer()
    server.ours[kind, GATEWAY] = THEIRS
    outcome = await bring(server, Live(server, lambda _: None, lambda: None))
    assert outcome.taken
    assert outcome.taken.startswith(f"There is a {kind} {GATEWAY} already")
    assert server.ours[kind, GATEWAY] == THEIRS
    # Nothing runs without what it stands on.
    assert kind == "Deployment" or ("Deployment", GATEWAY) not in server.ours


FOREIGN = {
    "nobody's": {"app": "theirs"},
    "another tool's": {"llmbudget.io/budget": "team-a", "app.kubernetes.io/managed-by": "Helm"},
    "another budget's": {
        "app.kubernetes.io/managed-by": "llmbudget",
        "llmbudget.io/budget": "team-b",
        "llmbudget.io/budget-namespace": "llm-platform",
    },
}


@pytest.mark.parametrize("followed", [False, True], ids=["unknown", "followed"])
@pytest.mark.parametrize("labels", FOREIGN.values(), ids=FOREIGN)
async def test_nobodys_claim_is_taken(labels: dict[str, str], followed: bool) -> None:
    server = ApiServer()
    metadata = {"name": LEDGER, "namespace": "llm-platform", "labels": labels}
    kind = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    theirs = kind | {"metadata": metadata, "spec": {"accessModes": ["ReadWriteMany"]}}
    server.ours["PersistentVolumeClaim", LEDGER] = theirs
    live = server.live() if followed else Live(server, lambda _: None, lambda: None)
    outcome = await bring(server, live)
    assert outcome.taken
    assert outcome.taken.startswith(f"There is a PersistentVolumeClaim {LEDGER} already")
    assert server.ours["PersistentVolumeClaim", LEDGER] == theirs
    assert ("Deployment", GATEWAY) not in server.ours


async def test_the_claim_of_an_earlier_budget_of_that_name_is_its_own(server: ApiServer) -> None:
    claim = server.ours["PersistentVolumeClaim", LEDGER]
    server.ours = {("PersistentVolumeClaim", LEDGER): claim}
    for live in (server.live(), Live(server, lambda _: None, lambda: None)):
        assert (await bring(server, live)).taken is None
        assert ("Deployment", GATEWAY) in server.ours


async def test_where_a_name_is_taken_what_is_there_follows_its_budget(server: ApiServer) -> None:
    live = server.live()
    live.drop(server.object("ServiceAccount", GATEWAY))
    server.ours["ServiceAccount", GATEWAY] = THEIRS
    outcome = await bring(server, live, budget={"monthlyCap": "3.21"})
    assert outcome.taken
    assert server.ours["ServiceAccount", GATEWAY] == THEIRS
    assert "3210000000" in server.ours["ConfigMap", GATEWAY]["data"][CONFIG_KEY]


async def test_what_another_operator_made_meanwhile_is_ours(server: ApiServer) -> None:
    assert await bring(server, Live(server, lambda _: None, lambda: None)) == Outcome(
        written=len(wanted()[1])
    )


async def test_a_secret_of_that_name_that_is_another_ones_is_left_alone() -> None:
    server = ApiServer()
    theirs = {"metadata": {"name": "team-a-llm-provider-secrets"}, "data": {"MINE": "eA=="}}
    server.ours["Secret", "team-a-llm-provider-secrets"] = theirs
    live = Live(server, lambda _: None, lambda: None)
    outcome = await bring(server, live, deployment={"secretDelivery": "Env"})
    assert outcome.taken
    assert server.ours["Secret", "team-a-llm-provider-secrets"] == theirs


def test_what_is_known_of_an_object_never_gets_older() -> None:
    live = Live(ApiServer(), lambda _: None, lambda: None)

    def at(version: int) -> Manifest:
        metadata = {"name": "x", "namespace": "a", "resourceVersion": str(version)}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}

    live.put(at(11))
    live.put(at(10))
    assert live.get(at(0)) == at(11)
    live.put(at(12))
    assert live.get(at(0)) == at(12)
