"""The operator is killed between any two of its calls, whatever it was doing: its successor ends up
where it would have, and nothing has happened twice (I5).

A proxy before the API server lets so many writes through for each budget, one more for each: the
last one is carried out, its answer is kept back, and nothing more about that budget gets through.
Once no budget gets any further, the operator's process is killed: so one death is one after each of
many writes. Reads leave the world as it is: to die between two of them is to die after the write
before.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from tests.support.api_proxy import ApiProxy, Call, none, refusal
from tests.support.many_gateways import ManyGateways
from tests.support.operator_stage import (
    MODELS,
    Manifest,
    budget,
    create,
    deployment,
    model_of,
    provider,
    secret,
    status,
    until,
    workload,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, CLUSTER_ROLE_BINDINGS, EVENTS
from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.local.stage import Stage

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
DEATHS = 4
AT_ONCE = 10
"""Budgets that stand still at one death, at different stages of their lives: no kind of the
operator's workers may be held up by them altogether."""
LEAST = 24
"""Writes that the life of a budget takes at least: fewer, and this test tries nothing."""
PATIENCE = 120
"""Who dies while telling of a threshold leaves its successor 20 seconds in doubt."""
CROSSING = 600_000_000


class Doom:
    """What one operator may still write: of each budget, so many writes."""

    def __init__(self, last: dict[str, int]) -> None:
        self._last = last
        self._writes: Counter[str] = Counter()
        self.stuck: set[str] = set()
        """Budgets about which nothing gets through any more."""
        self.come = asyncio.Event()
        """The operator is dead."""

    async def before(self, call: Call) -> web.StreamResponse | None:
        return await self._keep() if _subject(call) in self.stuck else None

    async def after(self, call: Call) -> web.StreamResponse | None:
        name = _subject(call)
        if name is None or call.method == "GET":
            return None
        self._writes[name] += 1
        if self._writes[name] == self._last.get(name):
            self.stuck.add(name)
        return await self._keep() if name in self.stuck else None

    async def _keep(self) -> web.StreamResponse:
        await self.come.wait()
        return refusal(503)  # Nobody hears it.


def _subject(call: Call) -> str | None:
    """Name the budget that a call is about."""
    found = re.search(rb"life-\d\d", call.path.encode() + call.body)
    return found and found[0].decode()


class Scene:
    """Everything around the operators: where they work, and who hears of it."""

    def __init__(self, stage: Stage, cluster: Cluster, namespace: str) -> None:
        self.stage, self.cluster, self.namespace = stage, cluster, namespace
        self.gateways = ManyGateways(cluster, stage.gateways)
        self.proxy = ApiProxy(stage.kubeconfig)
        self.notices = 0

    @asynccontextmanager
    async def begun(self) -> AsyncIterator[Scene]:
        async def take(request: Request, answer: Answer) -> None:
            self.notices += 1
            answer.send(200, b"{}")

        async with await serve(take, 0) as server, self.proxy.running():
            channel = f"json://127.0.0.1:{port_of(server)}/notices"
            metadata = {"name": "channels", "namespace": self.namespace}
            channels = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
            await create(
                self.cluster, secret(self.namespace), channels | {"stringData": {"admin": channel}}
            )
            following = asyncio.create_task(self.gateways.run())
            try:
                yield self
            finally:
                following.cancel()

    async def operator(self, number: int) -> asyncio.subprocess.Process:
        """Start an operator that has the proxy before it."""
        name = f"operator-{number}"
        return await self.stage.operator(
            allow_private=["127.0.0.1"], name=name, server=self.proxy.url
        )

    async def die(self, number: int, last: dict[str, int], lives: list[asyncio.Task[None]]) -> int:
        """Let an operator work until it can't go on, and kill it; count the writes after which it
        died."""
        doom = Doom(last)
        self.proxy.fault, self.proxy.after = doom.before, doom.after
        operator = await self.operator(number)

        async def still() -> bool:
            assert operator.returncode is None, "it ended by itself"
            over = {life.get_name() for life in lives if life.done()}
            return last.keys() <= over | doom.stuck

        await until("no budget gets any further", still, PATIENCE)
        operator.kill()
        await operator.wait()
        doom.come.set()
        return len(doom.stuck)

    async def life(self, name: str) -> None:
        """Carry a budget through its life."""
        account = f"{self.namespace}/{name}"
        await create(self.cluster, self._provider(name), self._workload(name), self._budget(name))

        async def ready() -> bool:
            return (await status(self.cluster, self.namespace, name)).get("phase") == "Ready"

        await until(f"{name} is ready", ready, PATIENCE)
        await self.gateways.spend(account, CROSSING)

        async def moved() -> bool:
            acknowledged = self.gateways.acknowledged_of(account) == 2
            return acknowledged and await self._model(name) == "medium"

        await until(f"{name} is downgraded", moved, PATIENCE)
        await self.cluster.delete(BUDGETS, self.namespace, name)

        async def gone() -> bool:
            budget = await self.cluster.get(BUDGETS, self.namespace, name)
            binding = f"llmbudget:{self.namespace}:{name}"
            left = await self.cluster.get(CLUSTER_ROLE_BINDINGS, None, binding)
            return budget is None and left is None

        await until(f"{name} is gone", gone, PATIENCE)

        async def back() -> bool:
            return await self._model(name) == "large"

        await until(f"{name}'s model is back", back)

    async def _model(self, name: str) -> str | None:
        return model_of(await deployment(self.cluster, self.namespace, name))

    async def judge(self, names: list[str]) -> None:
        """Nothing happened twice."""
        events, _ = await self.cluster.list(EVENTS, self.namespace)
        crossed = Counter(
            (event["regarding"]["name"], event["action"])
            for event in events
            if event["reason"] == "ThresholdCrossed"
        )
        for name in names:
            told = {key[1]: count for key, count in crossed.items() if key[0] == name}
            assert told == {"notify_admin": 1, "downgrade_models": 1}, name
            found = await deployment(self.cluster, self.namespace, name)
            assert found is not None
            assert found["metadata"]["generation"] == 3, f"{name}: made, moved, put back"

    def _budget(self, name: str) -> Manifest:
        """Write a budget that has everything to do when half of it is spent."""
        target = {
            "namespace": self.namespace,
            "selector": {"matchLabels": {"app": name}},
            "env": "LLM_MODEL",
        }
        steps = ((30, "notify_admin"), (50, "downgrade_models"))
        thresholds = [{"percentage": at, "action": action} for at, action in steps]
        return budget(
            self.namespace,
            name,
            budget={"monthlyCap": "1.00", "alertThresholds": thresholds},
            providers=[{"name": name}],
            downgrade={"ladder": [model["name"] for model in MODELS]},
            targets=[target],
            notifications={"secretRef": {"name": "channels"}},
        )

    def _provider(self, name: str) -> Manifest:
        made = provider(self.namespace)
        return made | {"metadata": made["metadata"] | {"name": name}}

    def _workload(self, name: str) -> Manifest:
        made = workload(self.namespace, f"{self.namespace}/{name}")
        made["metadata"] |= {"name": name, "labels": {"app": name}}
        made["spec"]["selector"] = {"matchLabels": {"app": name}}
        made["spec"]["template"]["metadata"]["labels"] = {"app": name}
        return made


async def test_it_may_die_after_any_write(stage: Stage, cluster: Cluster, namespace: str) -> None:
    async with Scene(stage, cluster, namespace).begun() as scene, asyncio.TaskGroup() as group:
        lives: list[asyncio.Task[None]] = []
        died = 0
        for death in range(1, DEATHS + 1):
            last = {f"life-{n:02}": n for n in range(death, DEATHS * AT_ONCE + 1, DEATHS)}
            lives += [group.create_task(scene.life(name), name=name) for name in last]
            died += await scene.die(death, last, lives)
        scene.proxy.fault = scene.proxy.after = none
        operator = await scene.operator(DEATHS + 1)
        await asyncio.gather(*lives)
        assert operator.returncode is None
        await scene.judge([life.get_name() for life in lives])
        assert LEAST < died < len(lives), "the last ones lived through it all"
        # Who dies between delivery and acknowledgement may tell again, but loses none.
        assert scene.notices >= 2 * len(lives)
