"""What watches tell of children: drift is news, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmbudget.api.meta import ANNOTATION_APPLIED
from llmbudget.clients.cluster import ApiError, Cluster, WatchEvent
from llmbudget.clients.connection import Connection
from llmbudget.clients.kinds import DEPLOYMENTS, Kind
from llmbudget.reconcile import live as module
from llmbudget.reconcile.live import Live

Manifest = dict[str, Any]
ACCOUNT = "team/one"


def deployment(version: int, replicas: int = 1, status: int = 0, **notes: str) -> Manifest:
    metadata = {
        "namespace": "team",
        "name": "one-gateway",
        "resourceVersion": str(version),
        "labels": {"llmbudget.io/budget": "one", "llmbudget.io/budget-namespace": "team"},
        "annotations": {ANNOTATION_APPLIED: "digest"} | notes,
        "managedFields": [{"manager": "x", "time": str(version)}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"replicas": replicas},
        "status": {"readyReplicas": status},
    }


class Api(Cluster):
    """One watch that tells what it is given."""

    def __init__(self) -> None:
        super().__init__(Connection.in_cluster(Path("/nowhere")))
        self.events: asyncio.Queue[WatchEvent | ApiError] = asyncio.Queue()
        self.listed: list[Manifest] = []
        """What there is when a watch begins."""

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        metadata_only: bool = False,
    ) -> AsyncIterator[WatchEvent]:
        for item in self.listed if kind is DEPLOYMENTS else ():
            yield WatchEvent("ADDED", item)
        yield WatchEvent("SYNCED", {})
        while True:
            if kind is not DEPLOYMENTS:
                await asyncio.Event().wait()
            event = await self.events.get()
            if isinstance(event, ApiError):
                raise event
            yield event


class Scene:
    def __init__(self) -> None:
        self.api = Api()
        self.news: list[str] = []
        self.live = Live(self.api, self.news.append, lambda: None)

    async def tell(self, type: str, item: Manifest) -> list[str]:
        """Tell by the watch; return the news that it made."""
        await self.live.ready("team")
        self.news.clear()
        self.api.events.put_nowait(WatchEvent(type, item))
        for _ in range(5):
            await asyncio.sleep(0)
        return self.news


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    await made.live.close()


async def test_a_change_is_news_and_a_status_is_none(scene: Scene) -> None:
    assert await scene.tell("ADDED", deployment(1)) == [ACCOUNT]
    assert await scene.tell("MODIFIED", deployment(2, status=1)) == []
    revision = {"deployment.kubernetes.io/revision": "1"}
    assert await scene.tell("MODIFIED", deployment(2, status=1, **revision)) == []
    assert await scene.tell("MODIFIED", deployment(3, replicas=7, status=1)) == [ACCOUNT]
    assert await scene.tell("MODIFIED", deployment(4, replicas=7, note="a")) == [ACCOUNT]
    assert await scene.tell("DELETED", deployment(5)) == [ACCOUNT]
    assert scene.live.of(ACCOUNT) == []


async def test_what_was_answered_already_is_no_news(scene: Scene) -> None:
    scene.live.put(deployment(3))
    for version in (2, 3):
        assert await scene.tell("MODIFIED", deployment(version)) == []
    assert await scene.tell("MODIFIED", deployment(4, replicas=2)) == [ACCOUNT]


async def test_ones_own_write_is_no_news_when_its_watch_is_faster_than_its_answer(
    scene: Scene,
) -> None:
    await scene.live.ready("team")
    with scene.live.expecting(deployment(0)):
        assert await scene.tell("ADDED", deployment(1)) == []
    assert await scene.tell("MODIFIED", deployment(2, replicas=2)) == [ACCOUNT]


async def test_a_child_is_found_as_it_was_but_for_who_wrote_it_and_its_status(
    scene: Scene,
) -> None:
    await scene.tell("ADDED", deployment(1))
    found = scene.live.get(deployment(0))
    wanted = deployment(1)
    del wanted["status"], wanted["metadata"]["managedFields"]
    assert found == wanted
    assert scene.live.of(ACCOUNT) == [wanted]
    assert scene.live.of("team/another") == []


async def test_a_namespace_that_is_left_is_forgotten(scene: Scene) -> None:
    await scene.tell("ADDED", deployment(1))
    scene.live.keep({"elsewhere"})
    assert scene.live.of(ACCOUNT) == []


async def test_what_went_while_its_watch_was_forbidden_is_noticed_when_it_may_look_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0)
    other = deployment(2)
    other["metadata"]["name"] = "one-other"
    for item in (deployment(1), other):
        await scene.tell("ADDED", item)
    scene.news.clear()
    changed = deployment(5, replicas=9)
    changed["metadata"]["name"] = "one-other"
    scene.api.listed = [changed]
    scene.api.events.put_nowait(ApiError(403, "Forbidden", "no"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert scene.news == [ACCOUNT, ACCOUNT], "one has changed, the other is gone"
    assert [each["metadata"]["name"] for each in scene.live.of(ACCOUNT)] == ["one-other"]
    assert scene.live.get(deployment(0)) is None
    await scene.live.ready("team")
