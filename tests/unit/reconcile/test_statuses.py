"""Targets follow a budget as it is now, not as it was when its tree was gathered."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.unit.decide.target_helpers import deployment, env_of, patched, stored, value
from tests.unit.reconcile.status_helpers import CHILD, balance, situation

from llmbudget.api.meta import FINALIZER
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.connection import Connection
from llmbudget.clients.kinds import BUDGETS, DEPLOYMENTS, Kind
from llmbudget.reconcile.recorder import Recorder
from llmbudget.reconcile.status import Situation
from llmbudget.reconcile.statuses import Statuses
from llmbudget.reconcile.store import Store

Manifest = dict[str, Any]
CONSENT = {"llmbudget.io/allow-budget": CHILD, "llmbudget.io/model-env": "LLM_MODEL"}
TARGET = {
    "namespace": "team-a",
    "selector": {"matchLabels": {"app": "researcher"}},
    "env": "LLM_MODEL",
}
DEAR, CHEAP = value("claude-3-sonnet"), value("gpt-4o-mini")
LADDER = {"ladder": ["claude-3-sonnet", "gpt-4o-mini"]}


class Api(Cluster):
    """One budget and one Deployment on an API server."""

    def __init__(self, budget: Manifest, workload: Manifest) -> None:
        super().__init__(Connection.in_cluster(Path("/nowhere")))
        self.budget: Manifest | None = budget
        self.workload = workload
        self.written: list[str] = []
        self._version = 5

    def version(self) -> str:
        """Make the next resource version."""
        self._version += 1
        return str(self._version)

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        return copy.deepcopy(self.workload if kind is DEPLOYMENTS else self.budget)

    async def get_metadata(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        return await self.get(kind, namespace, name)

    async def list(
        self, kind: Kind, namespace: str | None = None, label_selector: str | None = None
    ) -> tuple[list[Manifest], str]:
        assert kind is DEPLOYMENTS
        return [copy.deepcopy(self.workload)], "1"

    async def json_patch(
        self, kind: Kind, namespace: str | None, name: str, operations: Sequence[Manifest]
    ) -> Manifest:
        self.workload = stored(patched(self.workload, operations))
        return self.workload

    async def merge_patch(
        self, kind: Kind, namespace: str | None, name: str, patch: Manifest
    ) -> Manifest:
        assert kind is BUDGETS
        if self.budget is None:
            raise ApiError(404, "NotFound", "not found")
        if patch["metadata"]["resourceVersion"] != self.budget["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        self.budget["metadata"] |= patch["metadata"] | {"resourceVersion": self.version()}
        if "deletionTimestamp" in self.budget["metadata"] and not patch["metadata"]["finalizers"]:
            gone, self.budget = self.budget, None
            return gone
        return copy.deepcopy(self.budget)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        self.written.append(manifest["metadata"]["name"])
        return copy.deepcopy(self.budget or manifest)

    async def create(self, manifest: Manifest) -> Manifest:
        assert manifest["kind"] == "Event"
        return manifest


class Scene:
    """A downgraded child with one target, as it was gathered, and what is known of it now."""

    def __init__(self, **metadata: Any) -> None:
        spec = {"targets": [TARGET | {"namespace": "llm-teams"}], "downgrade": LADDER}
        self.gathered: Situation = situation(
            balance(), balance(CHILD, level=1), child=spec | {"providers": []}
        )
        budget = next(b for b in self.gathered.world.budgets if b.account == CHILD)
        self.raw: Manifest = {
            "apiVersion": "llmbudget.io/v1alpha1",
            "kind": "LLMBudget",
            "metadata": {
                "namespace": budget.namespace,
                "name": budget.name,
                "uid": budget.uid,
                "generation": budget.generation,
                "resourceVersion": "5",
            }
            | metadata,
            "spec": {"parentRef": {"namespace": "llm-platform", "name": "org"}} | spec,
        }
        self.root: Manifest = self.raw | {
            "metadata": {"namespace": "llm-platform", "name": "org", "uid": "root"},
            "spec": {"allowedChildren": {"namespaces": ["llm-teams"]}},
        }
        self.store = Store()
        self.store.put_budget(copy.deepcopy(self.root))
        self.store.put_budget(copy.deepcopy(self.raw))
        self.api = Api(copy.deepcopy(self.raw), deployment([DEAR], annotations=CONSENT))
        self.api.workload["metadata"]["namespace"] = "llm-teams"
        recorder = Recorder(self.api, "test")
        self.statuses = Statuses(self.api, self.store, recorder, lambda: datetime.now(UTC))

    @property
    def env(self) -> Any:
        return env_of(self.api.workload)

    async def delete(self) -> None:
        """As kubectl does; the watch tells of it."""
        assert self.api.budget is not None
        self.api.budget["metadata"] |= {
            "deletionTimestamp": "2026-11-23T12:00:00Z",
            "resourceVersion": self.api.version(),
        }
        self.store.put_budget(copy.deepcopy(self.api.budget))


async def test_a_target_is_moved_with_a_finalizer_and_put_back_before_it_goes() -> None:
    scene = Scene()
    await scene.statuses.write_tree(scene.gathered)
    assert scene.env == [CHEAP]
    assert scene.api.budget is not None
    assert scene.api.budget["metadata"]["finalizers"] == [FINALIZER]
    await scene.delete()
    await scene.statuses.write_tree(scene.gathered)
    assert (scene.env, scene.api.budget) == ([DEAR], None)


async def test_a_tree_gathered_before_a_deletion_moves_nothing_after_it() -> None:
    scene = Scene()
    await scene.statuses.write_tree(scene.gathered)
    await scene.delete()
    await scene.statuses.release(CHILD)
    scene.store.drop("LLMBudget", scene.raw)
    await scene.statuses.write_tree(scene.gathered)
    assert scene.env == [DEAR]


async def test_nothing_is_said_of_a_budget_that_has_left_its_tree() -> None:
    scene = Scene()
    scene.store.drop("LLMBudget", scene.root)
    await scene.statuses.write_tree(scene.gathered)
    assert "agents" not in scene.api.written
    assert scene.env == [DEAR]


@pytest.mark.parametrize("metadata", [{}, {"finalizers": [FINALIZER]}], ids=["free", "held"])
@pytest.mark.parametrize("now", ["gone", "deleting", "another"])
async def test_a_deletion_that_no_watch_has_told_of_yet_moves_nothing(
    metadata: Manifest, now: str
) -> None:
    scene = Scene(**metadata)
    assert scene.api.budget is not None
    if now == "gone":
        scene.api.budget = None
    elif now == "deleting":
        deleting = {"deletionTimestamp": "2026-11-23T12:00:00Z"}
        scene.api.budget["metadata"] |= deleting | {"resourceVersion": scene.api.version()}
    else:
        another = {"uid": "another", "resourceVersion": scene.api.version()}
        scene.api.budget["metadata"] |= another
    await scene.statuses.write_tree(scene.gathered)
    assert scene.env == [DEAR]


async def test_what_a_budget_left_changed_is_put_back_once_it_is_surely_gone() -> None:
    scene = Scene()
    await scene.statuses.write_tree(scene.gathered)
    scene.store.put_target(scene.api.workload, gone=False)
    scene.store.drop("LLMBudget", scene.raw)
    await scene.statuses.put_back_orphans(CHILD)
    assert scene.env == [CHEAP], "it is there, and only not known yet"
    scene.api.budget = None
    await scene.statuses.put_back_orphans(CHILD)
    assert scene.env == [DEAR]
    scene.store.put_target(scene.api.workload, gone=False)
    assert scene.store.changed_targets(CHILD) == frozenset()


async def test_a_selector_that_the_api_server_refuses_holds_no_deletion_up() -> None:
    scene = Scene()
    await scene.statuses.write_tree(scene.gathered)

    async def refuse(*_: Any, **__: Any) -> Any:
        raise ApiError(400, "BadRequest", "unable to parse requirement")

    scene.store.put_target(scene.api.workload, gone=False)
    scene.api.list = refuse  # type: ignore[method-assign]
    await scene.delete()
    await scene.statuses.write_tree(scene.gathered)
    assert (scene.env, scene.api.budget) == ([DEAR], None)


async def test_one_whose_turn_fails_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    written: list[str] = []

    async def write(self: Statuses, kind: str, namespace: str, name: str, *_: Any) -> None:
        written.append(name)
        if len(written) == 1:
            raise ApiError(500, "InternalError", "etcd is away")

    monkeypatch.setattr(Statuses, "_write", write)
    with pytest.raises(ApiError, match="etcd is away"):
        await scene.statuses.write_tree(scene.gathered)
    assert written == ["agents", "openrouter", "requesty", "localai"]


class Shared:
    """A provider that two root budgets use, each with a gateway of its own."""

    def __init__(self) -> None:
        self.gathered = situation(balance())
        self.provider = self.gathered.world.providers["openrouter"]
        self.store = Store()
        self.store.put_provider(self.raw({}))
        for name in ("org", "other"):
            metadata = {"namespace": self.provider.namespace, "name": name, "uid": name}
            spec = {"providers": [{"name": "openrouter"}]}
            self.store.put_budget({"kind": "LLMBudget", "metadata": metadata, "spec": spec})
        self.said: list[tuple[str, str]] = []
        api, recorder = Api(None, {}), Recorder(Api(None, {}), "test")
        api.apply_status = self.apply_status  # type: ignore[method-assign]
        self.statuses = Statuses(api, self.store, recorder, lambda: datetime.now(UTC))

    def raw(self, status: Manifest) -> Manifest:
        metadata = {"namespace": self.provider.namespace, "name": "openrouter", "uid": "p"}
        metadata["resourceVersion"] = str(len(getattr(self, "said", ())) + 1)
        return {"kind": "LLMProvider", "metadata": metadata, "spec": {}, "status": status}

    async def apply_status(self, manifest: Manifest) -> Manifest:
        ready = next(c for c in manifest["status"]["conditions"] if c["type"] == "Ready")
        self.said.append((ready["status"], ready["message"]))
        return self.raw(manifest["status"])

    async def look(self, root: str, missing: str = "") -> None:
        """Write the provider's status as the gateway of a root sees it."""
        world = self.gathered.world
        seen = replace(
            self.gathered,
            world=replace(world, root=replace(world.root, name=root)),
            gateway=replace(
                self.gathered.gateway, missing_keys={"openrouter": missing} if missing else {}
            ),
        )
        await self.statuses._write_provider(seen, self.provider)


async def test_a_provider_is_ready_once_no_gateway_lacks_its_key() -> None:
    shared = Shared()
    for _ in range(3):
        await shared.look("org")
        await shared.look("other", "no file")
    told = "The gateway has no key for provider openrouter: no file."
    assert shared.said == [("True", ""), ("False", told)], "nobody takes another's word back"
    await shared.look("other")
    assert shared.said[2:] == [("True", "")]


@pytest.mark.parametrize("how", ["gone", "deleting", "without it"])
async def test_a_root_that_uses_a_provider_no_more_says_nothing_of_it(how: str) -> None:
    shared = Shared()
    await shared.look("other", "no file")
    metadata = {"namespace": shared.provider.namespace, "name": "other", "uid": "other"}
    if how == "gone":
        shared.store.drop("LLMBudget", {"metadata": metadata})
    elif how == "deleting":
        later = {"deletionTimestamp": "2026-11-26T00:00:00Z", "resourceVersion": "9"}
        spec = {"providers": [{"name": "openrouter"}]}
        shared.store.put_budget({"kind": "LLMBudget", "metadata": metadata | later, "spec": spec})
    else:
        later = {"generation": 2, "resourceVersion": "9"}
        spec = {"providers": [{"name": "requesty"}]}
        shared.store.put_budget({"kind": "LLMBudget", "metadata": metadata | later, "spec": spec})
    await shared.look("org")
    assert [ready for ready, _ in shared.said] == ["False", "True"]
