"""Crossed thresholds are told once, by the channels of the nearest budget that has any."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from tests.support.worlds import read, store_of
from tests.unit.reconcile.status_helpers import CHILD, ROOT, SCENARIOS

from llmbudget.api.budget import Action
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.connection import Connection
from llmbudget.clients.kinds import SECRETS, Kind
from llmbudget.contract.events import ActionEvent
from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.reconcile.actions import Actions
from llmbudget.reconcile.recorder import CLAIM, Claimed, Recorder
from llmbudget.reconcile.store import Store
from llmbudget.reconcile.streams import MOST_ACTIONS, Streams

Manifest = dict[str, Any]
CHANNELS = {"notifications": {"secretRef": {"name": "channels"}}}
CROSSED = ActionEvent(
    id="0123456789abcdef0123456789abcdef",
    account=CHILD,
    period="2026-11",
    percentage=80,
    action=Action.NOTIFY_ADMIN,
    spent_nano=80,
    cap_nano=100,
    fired_at="2026-11-23T12:00:00+00:00",
    acknowledged=False,
    seq=1,
)


class Api(Cluster):
    """Secrets and Events."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(Connection.in_cluster(Path("/nowhere")))
        self.asked: list[tuple[str | None, str]] = []
        self.events: dict[str, Manifest] = {}
        text = base64.b64encode(f"json://127.0.0.1:{port}/".encode()).decode()
        self._secret = {"data": {"admin": text}}

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        if kind is SECRETS:
            self.asked.append((namespace, name))
            return self._secret
        return self.events.get(name)

    async def create(self, manifest: Manifest) -> Manifest:
        name = manifest["metadata"]["name"]
        if name in self.events:
            raise ApiError(409, "AlreadyExists", "it is there")
        self.events[name] = manifest
        return manifest


class Gateways:
    def __init__(self) -> None:
        self.acknowledged: list[str] = []

    async def acknowledge(self, root: str, action: str) -> None:
        self.acknowledged.append(action)


def tree(*having: str) -> Store:
    documents = read(SCENARIOS / "platform.yaml", SCENARIOS / "tree.yaml")
    for document in documents[-2:]:
        if document["metadata"]["name"] in having:
            document["spec"] |= CHANNELS
    return store_of(documents)


def actions(api: Api, store: Store, gateways: Gateways, instance: str = "one") -> Actions:
    made = Actions(api, store, cast(Streams, gateways), Recorder(api, instance), {"127.0.0.1"})
    made.take(ROOT, CROSSED)
    return made


KEY = f"{ROOT}#{CROSSED.id}"


@pytest.mark.parametrize(
    ("having", "place"),
    [
        (("agents", "org"), "llm-teams"),
        (("agents",), "llm-teams"),
        (("org",), "llm-platform"),
    ],
)
async def test_channels_are_those_of_the_nearest_budgets_own_namespace(
    having: tuple[str, ...], place: str
) -> None:
    async def take(_: Request, answer: Answer) -> None:
        answer.send(200, b"{}")

    async with await serve(take, 0) as server:
        api, gateways = Api(port_of(server)), Gateways()
        await actions(api, tree(*having), gateways).carry_out(KEY)
    assert api.asked == [(place, "channels")]
    assert gateways.acknowledged == [CROSSED.id]


async def test_two_operators_tell_once() -> None:
    notices: list[str] = []

    async def take(request: Request, answer: Answer) -> None:
        notices.append(request.path)
        answer.send(200, b"{}")

    async with await serve(take, 0) as server:
        api, gateways, store = Api(port_of(server)), Gateways(), tree("org")
        one, two = actions(api, store, gateways), actions(api, store, gateways, "two")
        await one.carry_out(KEY)
        with pytest.raises(Claimed):
            await two.carry_out(KEY)
        two.forget(ROOT, CROSSED)
        await two.carry_out(KEY)
    assert (len(api.events), len(notices), len(gateways.acknowledged)) == (1, 1, 1)


@pytest.mark.parametrize("instance", ["one", "two"], ids=["started again", "another, later"])
async def test_what_one_that_died_had_begun_is_told_by_the_next(instance: str) -> None:
    notices: list[str] = []

    async def take(request: Request, answer: Answer) -> None:
        notices.append(request.path)
        answer.send(200, b"{}")

    async with await serve(take, 0) as server:
        api, gateways, store = Api(port_of(server)), Gateways(), tree("org")
        begun = datetime.now(UTC) - (CLAIM if instance == "two" else timedelta(0))
        name = f"agents.{CROSSED.id[:16]}"
        api.events[name] = {"reportingInstance": "one", "eventTime": begun.isoformat()}
        await actions(api, store, gateways, instance).carry_out(KEY)
    assert (len(notices), gateways.acknowledged) == (1, [CROSSED.id])


@pytest.mark.parametrize("having", [("org",), ("org", "team")])
async def test_a_gateway_speaks_for_no_budget_outside_its_tree(having: tuple[str, ...]) -> None:
    """A child that its parent refuses is in no tree: what its own root's gateway says of it must
    not reach the channels of the parent that it names."""
    api, gateways = Api(), Gateways()
    store = tree(*having)
    stranger = "evil/org"
    told = Actions(api, store, cast(Streams, gateways), Recorder(api, "one"), {"127.0.0.1"})
    key = told.take(stranger, CROSSED)
    assert key is not None
    await told.carry_out(key)
    assert api.asked == []
    assert api.events == {}


async def test_a_gateway_that_takes_no_acknowledgement_is_not_listened_to_for_ever() -> None:
    made = actions(Api(), tree("org"), Gateways())
    others = (CROSSED.model_copy(update={"id": str(number)}) for number in range(MOST_ACTIONS))
    assert [made.take(ROOT, event) is None for event in others].count(True) == 1
    assert made.take(ROOT, CROSSED) == KEY, "it is waiting already"
    assert made.take("llm-platform/other", CROSSED) is not None, "others have their own"
    made.forget(ROOT, CROSSED)
    assert made.take(ROOT, CROSSED.model_copy(update={"id": "new"})) is not None
