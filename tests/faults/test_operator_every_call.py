"""The operator dies between any two of its calls, whatever it was doing: its successor ends up
where it would have, and nothing has happened twice (I5).

It dies in this process: after one of its writes, which is carried out, nothing that it asks gets
through or comes back. Reads leave the world as it is: to die between two of them is to die after
the write before.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from tests.support.many_gateways import ManyGateways
from tests.support.operator_stage import (
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
from llmbudget.clients.connection import Connection
from llmbudget.clients.kinds import BUDGETS, CLUSTER_ROLE_BINDINGS, DEPLOYMENTS, EVENTS, PROVIDERS
from llmbudget.decide.world import Installation
from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.local.stage import Stage
from llmbudget.reconcile.controller import Controller

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        "EVERY_WRITE" not in os.environ, reason="takes minutes: run by `make test-every-write`"
    ),
]
AT_ONCE = 16
LEAST = 30
"""Writes that the life of a budget takes at least: fewer, and this test tries nothing."""
MOST = 100
CROSSING = 600_000_000
OWN = "llmbudget-system"
INSTALLATION = Installation(
    namespace=OWN,
    service_account=f"{OWN}/llmbudget-operator",
    gateway_image="llmbudget:local",
    image_prefixes=(),
    private_hosts=frozenset({"127.0.0.1"}),
)


class Mortal(Connection):
    """A connection whose user dies after its `last` write, before it sees the answer."""

    last = 0
    writes = 0
    died: asyncio.Event

    @classmethod
    def to(cls, stage: Stage, last: int = 0) -> Mortal:
        """Connect; 0: it lives for ever."""
        connection = cls.from_kubeconfig(stage.kubeconfig)
        connection.last, connection.died = last, asyncio.Event()
        return connection

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
    ) -> Manifest:
        if self.died.is_set():
            await asyncio.Event().wait()
        self.writes += method != "GET"
        fatal = method != "GET" and self.writes == self.last
        try:
            answer = await super().send(method, path, body, content_type, query, accept)
        finally:
            if fatal:
                self.died.set()
        if self.died.is_set():
            await asyncio.Event().wait()
        return answer


class Scene:
    """Everything around the operators: where they work, and who hears of it."""

    def __init__(self, stage: Stage, cluster: Cluster, namespace: str) -> None:
        self.stage, self.cluster, self.namespace = stage, cluster, namespace
        self.gateways = ManyGateways(cluster, stage.gateways)
        self.notices = 0

    @asynccontextmanager
    async def begun(self) -> AsyncIterator[Scene]:
        async def take(request: Request, answer: Answer) -> None:
            self.notices += 1
            answer.send(200, b"{}")

        server = await serve(take, 0)
        channel = f"json://127.0.0.1:{port_of(server)}/notices"
        metadata = {"name": "channels", "namespace": self.namespace}
        channels = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        channels["stringData"] = {"admin": channel}
        await create(self.cluster, secret(self.namespace), provider(self.namespace), channels)
        following = asyncio.create_task(self.gateways.run())
        try:
            async with server:
                yield self
        finally:
            following.cancel()

    async def life(self, name: str, mortal: Mortal) -> bool:
        """Carry a budget through its life, by an operator that dies and one that follows it; tell
        whether the first died."""
        await create(self.cluster, self._workload(name), self._budget(name))
        first = asyncio.create_task(self._operate(name, mortal))
        second: asyncio.Task[None] | None = None

        async def succeed() -> None:
            nonlocal second
            await mortal.died.wait()
            first.cancel()
            second = asyncio.create_task(self._operate(name, Mortal.to(self.stage)))

        heir = asyncio.create_task(succeed())
        try:
            await self._stages(name)
        finally:
            for task in (first, heir, second):
                if task is not None:
                    task.cancel()
        return mortal.died.is_set()

    async def _stages(self, name: str) -> None:
        account = f"{self.namespace}/{name}"

        async def ready() -> bool:
            return (await status(self.cluster, self.namespace, name)).get("phase") == "Ready"

        await until(f"{name} is ready", ready, 90)
        await self.gateways.spend(account, CROSSING)

        async def moved() -> bool:
            acknowledged = self.gateways.acknowledged_of(account) == 2
            return acknowledged and await self._model(name) == "medium"

        await until(f"{name} is downgraded", moved, 90)
        await self.cluster.delete(BUDGETS, self.namespace, name)

        async def gone() -> bool:
            budget = await self.cluster.get(BUDGETS, self.namespace, name)
            binding = f"llmbudget:{self.namespace}:{name}"
            left = await self.cluster.get(CLUSTER_ROLE_BINDINGS, None, binding)
            return budget is None and left is None

        await until(f"{name} is gone", gone, 90)
        await until(f"{name}'s model is back", self._is_back(name))

    def _is_back(self, name: str) -> Callable[[], Awaitable[bool]]:
        async def ask() -> bool:
            return await self._model(name) == "large"

        return ask

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
            downgrade={"ladder": ["large", "medium", "small"]},
            targets=[target],
            notifications={"secretRef": {"name": "channels"}},
        )

    def _workload(self, name: str) -> Manifest:
        made = workload(self.namespace, f"{self.namespace}/{name}")
        made["metadata"] |= {"name": name, "labels": {"app": name}}
        made["spec"]["selector"] = {"matchLabels": {"app": name}}
        made["spec"]["template"]["metadata"]["labels"] = {"app": name}
        return made

    async def _operate(self, name: str, connection: Mortal) -> None:
        """Let an operator live that knows of one budget."""
        async with Cluster(connection) as cluster:
            controller = Controller(
                cluster, INSTALLATION, local_gateways=self.stage.gateways, instance="one"
            )
            await self._tell(controller, name)
            await controller.find_leftovers()
            async with asyncio.TaskGroup() as group:
                group.create_task(controller.run())
                group.create_task(self._go_on_telling(controller, name))

    async def _go_on_telling(self, controller: Controller, name: str) -> None:
        while True:
            await asyncio.sleep(0.1)
            await self._tell(controller, name)

    async def _tell(self, controller: Controller, name: str) -> None:
        """Tell what watches would; the test's own calls are not the operator's."""
        for kind in (PROVIDERS, BUDGETS):
            items, version = await self.cluster.list(kind, self.namespace)
            mine = [item for item in items if item["metadata"]["name"] in (name, "sim")]
            for item in mine:
                controller.put(kind.kind, item)
            for raw in controller.store.missing_from(kind.kind, mine, int(version)):
                controller.drop(kind.kind, raw)
        target = await self.cluster.get(DEPLOYMENTS, self.namespace, name)
        if target is not None:
            controller.store.put_target(target, gone=False)


async def test_it_may_die_after_any_write(stage: Stage, cluster: Cluster, namespace: str) -> None:
    async with Scene(stage, cluster, namespace).begun() as scene:
        last, dying = 0, True
        while dying:
            batch = range(last + 1, last + 1 + AT_ONCE)
            names = [f"after-{number}" for number in batch]
            lives = (
                scene.life(name, Mortal.to(stage, number))
                for name, number in zip(names, batch, strict=True)
            )
            dying = all(await asyncio.gather(*lives))
            await scene.judge(names)
            last += AT_ONCE
            assert last < MOST
        assert last > LEAST
        # Two for each: who dies between delivery and acknowledgement may tell again, loses none.
        assert 2 * last <= scene.notices <= 4 * last
