"""All Deployments that a budget's targets select are brought to what is in force, and told of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.unit.decide.target_helpers import (
    ACCOUNT,
    CONSENT,
    Conflict,
    deployment,
    env_of,
    lower_to,
    patched,
    stored,
    target,
    value,
    with_env,
)

from llmbudget.api.budget_status import ChangedTarget
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.connection import Connection
from llmbudget.clients.kinds import Kind
from llmbudget.decide.targets import Lower
from llmbudget.reconcile.targets import put_back, reconcile_targets

Manifest = dict[str, Any]
HOME = "team-a/own"
"""A budget in its target's namespace."""
MOVED = ChangedTarget(namespace="team-a", name="researcher", model="cheap")


class Workload(Cluster):
    """A cluster with at most one Deployment."""

    def __init__(self, found: Manifest | None) -> None:
        super().__init__(Connection.in_cluster(Path("/nowhere")))
        self.found = found
        self.outdated: list[Manifest] = []
        """What lists answer before the truth."""

    async def list(
        self, kind: Kind, namespace: str | None = None, label_selector: str | None = None
    ) -> tuple[list[Manifest], str]:
        assert (kind.kind, namespace, label_selector) == ("Deployment", "team-a", "app=researcher")
        if self.outdated:
            return [self.outdated.pop()], "1"
        return ([] if self.found is None else [self.found]), "1"

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        return self.found

    async def json_patch(
        self, kind: Kind, namespace: str | None, name: str, operations: Sequence[Manifest]
    ) -> Manifest:
        assert self.found is not None
        try:
            self.found = stored(patched(self.found, operations))
        except Conflict as error:
            raise ApiError(422, "Invalid", f"test failed: {error}") from None
        return self.found


async def test_a_target_is_moved_once_and_told_of_as_long_as_it_is() -> None:
    cluster = Workload(deployment([value("dear")]))
    first = await reconcile_targets(cluster, ACCOUNT, [target()], lower_to("cheap"))
    assert first.moved == ["Deployment team-a/researcher was moved to cheap"]
    again = await reconcile_targets(cluster, ACCOUNT, [target()], lower_to("cheap"))
    assert (again.moved, again.changed, first.changed) == ([], [MOVED], [MOVED])
    back = await reconcile_targets(cluster, ACCOUNT, [target()], None)
    assert back.moved == ["Deployment team-a/researcher was put back"]
    assert (back.changed, env_of(cluster.found or {})) == ([], [value("dear")])


async def test_the_way_back_is_secured_before_a_target_is_moved_and_only_then() -> None:
    cluster = Workload(deployment([value("dear")]))
    seen: list[object] = []

    async def before_change() -> None:
        seen.append(env_of(cluster.found or {}))

    for lower in (lower_to("cheap"), lower_to("cheap"), None):
        await reconcile_targets(cluster, ACCOUNT, [target()], lower, before_change)
    assert seen == [[value("dear")]]


async def test_a_change_of_someone_else_in_between_is_taken_into_account() -> None:
    outdated = deployment([value("dear")])
    cluster = Workload(with_env(outdated, [value("x", "NEW"), value("dear")]))
    cluster.outdated.append(outdated)
    report = await reconcile_targets(cluster, ACCOUNT, [target()], lower_to("cheap"))
    assert report.changed == [MOVED]
    assert env_of(cluster.found or {}) == [value("x", "NEW"), value("cheap")]


async def test_what_does_not_consent_and_what_is_not_there_is_told() -> None:
    refused = await reconcile_targets(
        Workload(deployment([value("dear")], annotations={})),
        HOME,
        [target()],
        lower_to("cheap"),
    )
    assert refused.refused == [
        "Deployment team-a/researcher: it does not consent: annotate it"
        f" llmbudget.io/allow-budget={HOME}."
    ]
    missing = await reconcile_targets(Workload(None), ACCOUNT, [target()], lower_to("cheap"))
    assert missing.unmatched == [
        "No Deployment in namespace team-a carries the labels app=researcher and the annotation"
        f" llmbudget.io/allow-budget={ACCOUNT}."
    ]


@pytest.mark.parametrize("lower", [lower_to("cheap"), None], ids=["downgrade", "put back"])
async def test_what_does_not_consent_in_another_namespace_is_as_if_it_were_not_there(
    lower: Lower | None,
) -> None:
    others = {"llmbudget.io/allow-budget": "else/where", "llmbudget.io/model-env": "LLM_MODEL"}
    there = Workload(deployment([value("dear")], annotations=others))
    seen = await reconcile_targets(there, ACCOUNT, [target()], lower)
    assert seen == await reconcile_targets(Workload(None), ACCOUNT, [target()], lower)
    assert "researcher:" not in str(seen)


@pytest.mark.parametrize("annotations", [CONSENT, {}], ids=["consents", "consents no more"])
async def test_a_former_target_is_put_back_where_it_consents(annotations: dict[str, str]) -> None:
    cluster = Workload(deployment(None, [value("dear")]))
    await reconcile_targets(cluster, ACCOUNT, [target("b")], lower_to("cheap"))
    assert cluster.found is not None
    kept = cluster.found["metadata"]["annotations"]
    consent = {key: text for key, text in kept.items() if key not in CONSENT} | annotations
    cluster.found["metadata"]["annotations"] = consent
    await put_back(cluster, ACCOUNT, "team-a", "researcher")
    assert env_of(cluster.found, 1) == [value("dear" if annotations else "cheap")]


async def test_a_former_target_that_is_gone_is_no_error() -> None:
    await put_back(Workload(None), ACCOUNT, "team-a", "researcher")


async def test_a_changed_container_is_told_of_when_its_target_names_another() -> None:
    cluster = Workload(deployment([value("dear")], [value("dear")]))
    await reconcile_targets(cluster, ACCOUNT, [target("a")], lower_to("cheap"))
    report = await reconcile_targets(cluster, ACCOUNT, [target("b")], lower_to("cheap"))
    assert report.changed == [MOVED] or env_of(cluster.found or {}) == [value("dear")]


async def test_a_namespace_that_may_not_be_read_is_told_of() -> None:
    class Closed(Workload):
        async def list(self, *_: object, **__: object) -> tuple[list[Manifest], str]:
            raise ApiError(403, "Forbidden", "no")

    report = await reconcile_targets(Closed(None), ACCOUNT, [target()], lower_to("cheap"))
    assert report.unmatched == ["The operator may not look at the Deployments in namespace team-a."]
    assert not report.changed
