"""Who watches the gateway: the kubelet, Prometheus, the operator, PostHog."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.gateway_process import (
    USD,
    GatewayProcess,
    Simulator,
    Threshold,
    account,
    body,
    config,
    events,
    post,
    provider,
)

from llmbudget.api.budget import Action
from llmbudget.clients.cluster import Cluster
from llmbudget.contract.config import DatadogConfig, PostHogConfig
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.http1 import Answer, Request, port_of, serve

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]


async def get(gateway: GatewayProcess, path: str, token: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        return await client.get(f"{gateway.url}{path}", headers=headers)


async def statuses(
    gateway: GatewayProcess, path: str, count: int, token: str | None
) -> Counter[int]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        return Counter(
            [
                (await client.get(f"{gateway.url}{path}", headers=headers)).status_code
                for _ in range(count)
            ]
        )


async def test_health_is_open_sixty_times_a_minute(gateway: GatewayProcess) -> None:
    assert (await get(gateway, "/livez")).json() == {"status": "ok"}
    began = time.monotonic()
    found = await statuses(gateway, "/health", 120, None)
    # A minute's worth at once, and what is refilled meanwhile.
    assert 60 <= found[200] <= 61 + (time.monotonic() - began)
    assert found[429] == 120 - found[200]
    refused = await get(gateway, "/health")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (await get(gateway, "/readyz")).status_code == 200, "the kubelet is not held off"


async def test_metrics_are_for_those_who_may(
    gateway: GatewayProcess, cluster: Cluster, kubectl: Kubectl, namespace: str
) -> None:
    assert (await get(gateway, "/metrics")).status_code == 401
    prometheus, _ = await cluster.create_token(namespace, "default", None, 3600)
    refused = await get(gateway, "/metrics", prometheus)
    assert refused.status_code == 403
    assert "nonResourceURL" in refused.json()["error"]["message"]
    name = f"metrics-{namespace}"
    kubectl("create", "clusterrole", name, "--verb=get", "--non-resource-url=/metrics")
    subject = f"--serviceaccount={namespace}:default"
    kubectl("create", "clusterrolebinding", name, f"--clusterrole={name}", subject)
    await post(gateway, body())
    answer = await get(gateway, "/metrics", prometheus)
    assert answer.status_code == 200
    samples = [s for family in text_string_to_metric_families(answer.text) for s in family.samples]
    calls = {s.labels["status"]: s.value for s in samples if s.name == "llmbudget_calls_total"}
    assert calls == {"ok": 1.0}
    assert {s.labels["budget"] for s in samples if "budget" in s.labels} == {f"{namespace}/team-a"}
    began = time.monotonic()
    found = await statuses(gateway, "/metrics", 180, prometheus)
    assert 95 <= found[200] <= 101 + (time.monotonic() - began) * 100 / 60
    assert found[429] == 180 - found[200]


async def test_an_account_that_has_gone_leaves_no_series_nor_does_its_cap(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    sim = (provider("sim", simulator.port),)
    child = account(namespace, USD, name=f"{namespace}/child", parent=f"{namespace}/team-a")
    capless = child.model_copy(update={"cap_nano": None})
    root = account(namespace, USD)
    ours = ("llmbudget_spent_usd", "llmbudget_cap_usd", "llmbudget_downgrade_level")
    for generation, (accounts, expected) in enumerate(
        (((root, child), [2, 2, 2]), ((root, capless), [2, 1, 2]), ((root,), [1, 1, 1])), 2
    ):
        await gateway.configure(config(namespace, accounts, sim, generation))
        async with asyncio.timeout(20):
            text = ""
            while f"llmbudget_config_generation {generation}.0" not in text:
                text = await gateway.scrape()
        lines = text.splitlines()
        found = [sum(line.startswith(f"{name}{{") for line in lines) for name in ours]
        assert found == expected


async def test_bad_tokens_do_not_flood_the_api_server(
    gateway: GatewayProcess, control_plane: ControlPlane, namespace: str
) -> None:
    before = len(control_plane.audit_log.read_text().splitlines())
    codes: Counter[int] = Counter()
    began = time.monotonic()
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        for number in range(300):
            headers = {"authorization": f"Bearer made-up-{number}"}
            answer = await client.post(
                f"{gateway.url}/v1/chat/completions", json=body(), headers=headers
            )
            codes[answer.status_code] += 1
    allowed = 61 + (time.monotonic() - began)
    assert 0 < codes[401] <= allowed
    assert codes[401] + codes[429] == 300
    reviews = [
        line
        for line in control_plane.audit_log.read_text().splitlines()[before:]
        if "tokenreviews" in line and f":{namespace}:" in line
    ]
    assert 0 < len(reviews) <= allowed


async def test_the_operators_stream(
    gateway: GatewayProcess, cluster: Cluster, namespace: str, simulator: Simulator
) -> None:
    notify = Threshold(percentage=1, action=Action.NOTIFY_ADMIN)
    small = account(namespace, 1_000_000, thresholds=(notify,))
    await gateway.configure(
        config(namespace, (small,), (provider("sim", simulator.port),), generation=2)
    )
    assert (await get(gateway, "/ledger/v1/balances")).status_code == 401
    consumers = await get(gateway, "/ledger/v1/balances", await gateway.token())
    assert consumers.status_code == 401
    stranger, _ = await cluster.create_token(
        namespace, "researcher", f"llmbudget:{namespace}/team-a", 600
    )
    assert (await get(gateway, "/ledger/v1/balances", stranger)).status_code == 403
    token = await gateway.operators_token()
    stream = events(gateway, token)
    seen = [await anext(stream) for _ in range(4)]
    assert [name for name, _ in seen] == ["ledger", "keys", "balance", "snapshot"]
    assert seen[0][1] == {"problem": None}
    assert seen[1][1] == {"missing": [], "reasons": {}}
    balance = seen[2][1]
    assert (balance["capNano"], balance["spentNano"], balance["configGeneration"]) == (
        "1000000",
        "0",
        2,
    )
    answer = await post(gateway, body())
    cost = int(Decimal(answer.headers["x-llmbudget-cost-usd"]) * USD)
    action = await _next(stream, lambda name, _: name == "action")
    assert (action["action"], action["percentage"]) == ("notify_admin", 1)
    assert action["acknowledged"] is False
    settled = await _next(
        events(gateway, token), lambda name, data: name == "balance" and data["heldNano"] == "0"
    )
    assert int(settled["spentNano"]) == cost
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"{gateway.url}/ledger/v1/actions/{action['id']}/ack"
        refused = await client.post(url)
        done = await client.post(url, headers={"authorization": f"Bearer {token}"})
    assert (refused.status_code, done.status_code) == (401, 200)
    again = await _next(stream, lambda name, data: name == "action" and data["acknowledged"])
    assert again["id"] == action["id"]


async def _next(stream: Any, wanted: Any) -> dict[str, Any]:
    async with asyncio.timeout(20):
        async for name, data in stream:
            if wanted(name, data):
                found: dict[str, Any] = data
                return found
    raise AssertionError("the stream ended")


async def test_metrics_reach_datadog(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    taken: list[dict[str, Any]] = []

    async def datadog(request: Request, answer: Answer) -> None:
        assert request.headers["dd-api-key"] == "dd-key"
        taken.extend(json.loads(gzip.decompress(request.body))["series"])
        answer.send(202, b'{"errors": []}')

    async with await serve(datadog, 0) as server:
        (gateway.folder / "datadog").write_text("dd-key\n")
        url = f"http://127.0.0.1:{port_of(server)}"
        wanted = DatadogConfig(url=url, allow_private=True)
        mine = (account(namespace, USD),)
        providers = (provider("sim", simulator.port),)
        await gateway.configure(config(namespace, mine, providers, generation=2, datadog=wanted))
        await asyncio.sleep(0.5)
        answers = [await post(gateway, body(words=words)) for words in (5, 6)]
        # A gateway that ends tells what is left.
        assert await asyncio.to_thread(gateway.stop) == 0
    found = {each["metric"]: each for each in taken}
    assert found["llmbudget_calls"]["points"][0]["value"] == 2
    spent = sum(Decimal(answer.headers["x-llmbudget-cost-usd"]) for answer in answers)
    assert found["llmbudget_spent_usd"]["points"][0]["value"] == pytest.approx(float(spent))
    assert found["gen_ai_client_token_usage_sum"]["type"] == 1
    assert {f"budget:{namespace}/team-a", "status:ok"} <= set(found["llmbudget_calls"]["tags"])
    text = json.dumps(taken)
    assert "canary prompt" not in text
    assert "dd-key" not in text
    gateway.start()
    await gateway.ready()


async def test_usage_reaches_posthog_once_it_is_back(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    taken: list[dict[str, Any]] = []
    away = True

    async def posthog(request: Request, answer: Answer) -> None:
        if away:
            answer.send(503, b"")
            return
        taken.extend(json.loads(request.body)["batch"])
        answer.send(200, b'{"status": 1}')

    async with AsyncExitStack() as stack:
        port = port_of(await stack.enter_async_context(await serve(posthog, 0)))
        folder = gateway.folder / "posthog"
        folder.write_text("phc_test")
        host = f"http://127.0.0.1:{port}"
        wanted = PostHogConfig(host=host, allow_private=True, sample_rate=Decimal(1))
        await gateway.configure(
            config(
                namespace,
                (account(namespace, USD),),
                (provider("sim", simulator.port),),
                generation=2,
                posthog=wanted,
            )
        )
        for words in (5, 6):
            answer = await post(gateway, body(words=words), x_llmbudget_task_id=f"task-{words}")
            assert answer.status_code == 200
        await asyncio.sleep(1)
        gateway.kill()
        assert not taken
        away = False
        gateway.start()
        await gateway.ready()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while len(taken) < 2:
                    await asyncio.sleep(0.1)
    assert [event["event"] for event in taken] == ["llm_usage", "llm_usage"]
    assert len({event["uuid"] for event in taken}) == 2
    found = taken[0]["properties"]
    guide = ("provider", "model", "agent", "task_id", "status", "tokens_out")
    assert {name: found[name] for name in guide} == {
        "provider": "sim",
        "model": "small",
        "agent": "researcher",
        "task_id": "task-5",
        "status": "ok",
        "tokens_out": 5,
    }
    assert found["cost"] > 0
    assert "canary prompt" not in json.dumps(taken)
