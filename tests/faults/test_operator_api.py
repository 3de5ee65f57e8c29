"""The API server refuses, hangs, breaks off, tells old news or nothing: the operator goes on, asks
no more often than is decent, and ends up right (I5)."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from aiohttp import web
from tests.support.api_proxy import ApiProxy, Call, Fault, gone, none, refusal
from tests.support.many_gateways import ManyGateways
from tests.support.operator_stage import (
    GATEWAY,
    READY,
    WAITING,
    budget,
    cap_of,
    create,
    deployment,
    provider,
    secret,
    status,
    until,
    until_condition,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, CLUSTER_ROLE_BINDINGS, SERVICES
from llmbudget.contract.config import GatewayConfig
from llmbudget.contract.events import BalanceEvent, LedgerEvent, SnapshotEvent
from llmbudget.ledger.sqlite import SqliteLedger
from llmbudget.local.stage import Stage

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
TROUBLE_SECONDS = 8.0
DECENT = 40
"""Requests a second, in all, while everything fails: 17 watches and two budgets try again."""


@pytest.fixture
async def proxy(stage: Stage) -> AsyncIterator[ApiProxy]:
    async with ApiProxy(stage.kubeconfig).running() as made:
        yield made


@pytest.fixture
async def operator(stage: Stage, proxy: ApiProxy) -> asyncio.subprocess.Process:
    return await stage.operator(allow_private=["127.0.0.1"], server=proxy.url)


async def probe(stage: Stage) -> tuple[int, str]:
    """Ask as the kubelet does; status 0: nobody answers yet."""
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            answer = await client.get(f"{stage.health}/healthz")
        except httpx.ConnectError:
            return 0, ""
    return answer.status_code, answer.text


async def carry_out(cluster: Cluster, namespace: str, step: int) -> None:
    """Change a budget's cap, make another budget, delete the one before."""
    cap = {"monthlyCap": f"{step + 1}.00"}
    await create(cluster, budget(namespace, budget=cap), budget(namespace, f"extra-{step}"))
    if step:
        await cluster.delete(BUDGETS, namespace, f"extra-{step - 1}")


async def carried_out(cluster: Cluster, namespace: str, step: int) -> None:
    async def right() -> bool:
        cap = await cap_of(cluster, namespace)
        made = await deployment(cluster, namespace, f"extra-{step}-gateway")
        before = f"llmbudget:{namespace}:extra-{step - 1}"
        left = await cluster.get(CLUSTER_ROLE_BINDINGS, None, before)
        return cap == (step + 1) * 10**9 and made is not None and left is None

    await until(f"step {step} is carried out", right, 60)
    await until_condition(cluster, namespace, *WAITING, name=f"extra-{step}")


def refusing(status: int, reason: str, **headers: str) -> Fault:
    """Refuse everything but the Lease."""

    async def fault(call: Call) -> web.StreamResponse | None:
        return None if call.resource == "leases" else refusal(status, reason, **headers)

    return fault


async def conflicting(call: Call) -> web.StreamResponse | None:
    """Say of each write that someone was faster."""
    reads = call.method == "GET" or call.resource == "leases"
    return None if reads else refusal(409, "Conflict")


async def expired(call: Call) -> web.StreamResponse | None:
    """End each watch at once: its version is too old."""
    return gone() if call.watch and call.resource != "leases" else None


async def silent(call: Call) -> web.StreamResponse | None:
    """Answer nothing, and then break off."""
    if call.resource == "leases":
        return None
    await asyncio.sleep(TROUBLE_SECONDS)
    raise ConnectionResetError


async def half_done(call: Call) -> web.StreamResponse | None:
    """Carry a write out, and say that it went wrong."""
    reads = call.method == "GET" or call.resource == "leases"
    return None if reads else refusal(500, "InternalError")


TROUBLES = {
    "409": conflicting,
    "429": refusing(429, "TooManyRequests", **{"Retry-After": "1"}),
    "500": refusing(500, "InternalError"),
    "503": refusing(503, "ServiceUnavailable"),
    "401": refusing(401, "Unauthorized"),
    "410": expired,
    "silence": silent,
    "half done": half_done,
}


async def test_whatever_the_api_server_answers(
    cluster: Cluster,
    namespace: str,
    proxy: ApiProxy,
    operator: asyncio.subprocess.Process,
) -> None:
    await create(cluster, secret(namespace), provider(namespace))
    await carry_out(cluster, namespace, 0)
    await carried_out(cluster, namespace, 0)
    for step, (name, trouble) in enumerate(TROUBLES.items(), 1):
        if trouble is half_done:
            proxy.after = trouble
        else:
            proxy.fault = trouble
        before = len(proxy.calls)
        await carry_out(cluster, namespace, step)
        await asyncio.sleep(TROUBLE_SECONDS)
        asked = len(proxy.calls) - before
        proxy.fault = proxy.after = none
        assert asked < DECENT * TROUBLE_SECONDS, f"{name}: {asked} requests"
        try:
            await carried_out(cluster, namespace, step)
        except AssertionError as error:
            raise AssertionError(f"after {name}: {error}") from None
        assert operator.returncode is None, name


async def test_an_old_list_brings_nothing_back(
    cluster: Cluster, namespace: str, proxy: ApiProxy, operator: asyncio.subprocess.Process
) -> None:
    """A list from a replica that lags, after the watch has told more."""
    await create(cluster, secret(namespace), provider(namespace))
    await carry_out(cluster, namespace, 0)
    await carried_out(cluster, namespace, 0)
    items, version = await cluster.list(BUDGETS)
    body = {
        "apiVersion": "llmbudget.io/v1alpha1",
        "kind": "LLMBudgetList",
        "metadata": {"resourceVersion": version},
        "items": items,
    }
    old = json.dumps(body).encode()
    await carry_out(cluster, namespace, 1)
    await carried_out(cluster, namespace, 1)

    async def stale(call: Call) -> web.StreamResponse | None:
        if call.resource != "llmbudgets" or call.method != "GET":
            return None
        if call.watch:
            return gone()
        single = call.path.rsplit("/", 1)[1] != "llmbudgets"
        return None if single else web.Response(body=old, content_type="application/json")

    proxy.fault = stale
    proxy.cut()
    await asyncio.sleep(5)
    assert await cap_of(cluster, namespace) == 2 * 10**9
    binding = f"llmbudget:{namespace}:extra-0"
    assert await cluster.get(CLUSTER_ROLE_BINDINGS, None, binding) is None
    proxy.fault = none
    await carry_out(cluster, namespace, 2)
    await carried_out(cluster, namespace, 2)
    assert operator.returncode is None


async def test_a_watch_that_falls_silent_fails_the_probe_and_mends(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    proxy: ApiProxy,
    operator: asyncio.subprocess.Process,
) -> None:
    await create(cluster, secret(namespace), provider(namespace))
    await carry_out(cluster, namespace, 0)
    await carried_out(cluster, namespace, 0)

    assert (await probe(stage))[0] == 200
    proxy.mute = "llmbudgets"
    await carry_out(cluster, namespace, 1)

    async def failing() -> bool:
        return (await probe(stage))[0] == 503

    await until("the probe fails", failing, 45)
    proxy.mute = ""
    await carried_out(cluster, namespace, 1)

    async def well() -> bool:
        return (await probe(stage))[0] == 200

    await until("the probe is well again", well, 60)


async def test_a_watch_that_dies_takes_the_process_along(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    proxy: ApiProxy,
    operator: asyncio.subprocess.Process,
) -> None:
    """An operator that sees half is none: it is started again, and sees all."""

    async def kill(call: Call) -> web.StreamResponse | None:
        if call.watch and call.resource == "llmproviders":
            status = {"kind": "Status", "code": 418, "message": "no more"}
            return web.Response(text=json.dumps({"type": "ERROR", "object": status}) + "\n")
        return None

    proxy.fault = kill
    assert await asyncio.wait_for(operator.wait(), 60) == 1
    assert "a part of the operator ended by itself" in stage.log("operator").read_text()


async def test_rights_that_are_taken_away_and_given_back(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    proxy: ApiProxy,
    operator: asyncio.subprocess.Process,
) -> None:
    """Without its role in a namespace the operator may not look: what went meanwhile is put back as
    soon as it may, though nobody touches the budget."""
    await create(cluster, secret(namespace), provider(namespace))
    await carry_out(cluster, namespace, 0)
    await carried_out(cluster, namespace, 0)
    role = ("rolebinding", "llmbudget-operator", "-n", namespace)
    await stage.kubectl("delete", *role)
    proxy.cut()

    async def blind() -> bool:
        said = stage.log("operator").read_text().splitlines()
        return any("watch:" in each and '"Service"' in each and "403" in each for each in said)

    await until("its watches are refused", blind)
    await cluster.delete(SERVICES, namespace, GATEWAY)
    before = len(proxy.calls)
    await asyncio.sleep(TROUBLE_SECONDS)
    assert len(proxy.calls) - before < DECENT * TROUBLE_SECONDS
    await stage.allow_namespace(namespace)

    async def back() -> bool:
        return await cluster.get(SERVICES, namespace, GATEWAY) is not None

    await until("the Service is back", back, 60)
    await carry_out(cluster, namespace, 1)
    await carried_out(cluster, namespace, 1)
    assert operator.returncode is None


class Restless:
    """A ledger that, once it is told to, says of each balance one level of the ladder and another,
    a hundred times a second."""

    def __init__(self, ledger: SqliteLedger, flapping: asyncio.Event) -> None:
        self._ledger = ledger
        self._flapping = flapping

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def subscribe(self) -> AsyncIterator[LedgerEvent]:
        async for event in self._ledger.subscribe():
            yield event
            if isinstance(event, SnapshotEvent):
                break
            last = event
        assert isinstance(last, BalanceEvent)
        await self._flapping.wait()
        for level in itertools.cycle((1, 0)):
            yield last.model_copy(update={"level": level if self._flapping.is_set() else 1})
            await asyncio.sleep(0.01)


class RestlessGateways(ManyGateways):
    """Of which one goes back and forth."""

    def __init__(self, cluster: Cluster, folder: Path, root: str) -> None:
        super().__init__(cluster, folder)
        self.flapping = asyncio.Event()
        self._root = root

    async def _configure(self, config: GatewayConfig) -> None:
        await super()._configure(config)
        ledger = self.ledgers[config.root]
        if config.root == self._root and not isinstance(ledger, Restless):
            self.ledgers[config.root] = cast(SqliteLedger, Restless(ledger, self.flapping))


async def test_a_gateway_that_goes_back_and_forth_keeps_nobody_busy(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    proxy: ApiProxy,
    operator: asyncio.subprocess.Process,
) -> None:
    gateways = RestlessGateways(cluster, stage.gateways, f"{namespace}/restless")
    following = asyncio.create_task(gateways.run())
    laddered = {
        "budget": {
            "monthlyCap": "1.00",
            "alertThresholds": [{"percentage": 50, "action": "downgrade_models"}],
        },
        "downgrade": {"ladder": ["large", "medium", "small"]},
    }
    names = ("restless", "calm")
    await create(
        cluster,
        *(secret(namespace), provider(namespace)),
        *(budget(namespace, name, **laddered) for name in names),
    )
    for name in names:
        await until_condition(cluster, namespace, *READY, name=name)
    before = len(proxy.calls)
    gateways.flapping.set()
    await asyncio.sleep(TROUBLE_SECONDS / 2)
    await gateways.spend(f"{namespace}/calm", 600_000_000)

    async def level(name: str) -> bool:
        return (await status(cluster, namespace, name)).get("downgradeLevel") == 1

    await until("the other's transition is told", lambda: level("calm"), 10)
    await asyncio.sleep(TROUBLE_SECONDS / 2)
    writes = sum(
        call.resource == "llmbudgets/status" and "/restless/" in call.path
        for call in proxy.calls[before:]
    )
    assert 5 < writes < 10 + 2 * 2 * TROUBLE_SECONDS, writes
    gateways.flapping.clear()
    await until("what is true is told in the end", lambda: level("restless"))
    assert operator.returncode is None
    following.cancel()
