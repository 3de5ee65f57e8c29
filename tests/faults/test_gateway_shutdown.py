"""The gateway is told to end under load: what runs ends well, and nothing new begins."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from tests.support.gateway_process import (
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    provider,
    rows,
)

from llmbudget.clients.cluster import Cluster

pytestmark = pytest.mark.cluster

STREAMS = 20


async def stream(client: httpx.AsyncClient, started: asyncio.Semaphore) -> str:
    """Read a stream to its end; `started` counts those whose first bytes came."""
    document = body(words=80, stream=True)
    text = ""
    async with client.stream("POST", "/v1/chat/completions", json=document) as answer:
        assert answer.status_code == 200
        async for piece in answer.aiter_text():
            if not text:
                started.release()
            text += piece
    return text


async def test_streams_end_well_and_nothing_new_begins(
    cluster: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    simulator = Simulator(tmp_path, latency_ms="1200")
    gateway = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    try:
        await simulator.ready()
        await gateway.prepare()
        await gateway.configure(
            config(namespace, (account(namespace, USD),), (provider("sim", simulator.port),))
        )
        gateway.start()
        await gateway.ready()
        headers = {"authorization": f"Bearer {await gateway.token()}"}
        async with httpx.AsyncClient(
            trust_env=False, timeout=30, base_url=gateway.url, headers=headers
        ) as client:
            started = asyncio.Semaphore(0)
            running = [asyncio.create_task(stream(client, started)) for _ in range(STREAMS)]
            for _ in running:
                await started.acquire()
            assert gateway.process is not None
            gateway.process.terminate()
            answers = await new_calls(client)
            texts = await asyncio.gather(*running)
        assert await asyncio.to_thread(gateway.process.wait, 30) == 0
        assert set(answers) <= {"503", "refused"}, answers
        assert answers["503"], "who comes before the end is told so"
        assert all(text.rstrip().endswith("data: [DONE]") for text in texts)
        entries, bill = await rows(gateway), await simulator.bill()
        assert [entry.outcome for entry in entries] == ["metered"] * STREAMS
        assert (bill["calls"], bill["nano"]) == (STREAMS, sum(entry.cost for entry in entries))
    finally:
        simulator.stop()


async def test_what_outlasts_the_grace_period_is_charged_and_ended(
    cluster: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    simulator = Simulator(tmp_path, latency_ms="20000")
    gateway = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    gateway.grace_seconds = 0.5
    try:
        await simulator.ready()
        await gateway.prepare()
        slow = provider("sim", simulator.port, idle_timeout_ms=60_000, total_timeout_ms=60_000)
        await gateway.configure(config(namespace, (account(namespace, USD),), (slow,)))
        gateway.start()
        await gateway.ready()
        headers = {"authorization": f"Bearer {await gateway.token()}"}
        async with httpx.AsyncClient(
            trust_env=False, timeout=30, base_url=gateway.url, headers=headers
        ) as client:
            calls = [client.post("/v1/chat/completions", json=body()) for _ in range(3)]
            document = body(stream=True, words=80)
            calls += [client.post("/v1/chat/completions", json=document) for _ in range(3)]
            running = [asyncio.create_task(call) for call in calls]
            while (await simulator.bill())["requests"] < len(running):
                await asyncio.sleep(0.05)
            assert await asyncio.to_thread(gateway.stop) == 0
            await asyncio.gather(*running, return_exceptions=True)
        entries = await rows(gateway)
        assert [entry.cost for entry in entries] == [entry.held for entry in entries]
        assert len(entries) == len(running)
        told = [
            line
            for line in gateway.log.read_text().splitlines()
            if '"ended"' in line or "the gateway ended" in line
        ]
        assert len(told) >= len(running)
    finally:
        simulator.stop()


async def test_a_single_pod_that_is_replaced_is_away_and_loses_nothing(
    cluster: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    """The one gateway of an SQLite ledger: the next one begins when it has ended."""
    simulator = Simulator(tmp_path, latency_ms="30")
    gateway = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    enough = asyncio.Event()
    answered: list[float] = []
    others: Counter[str] = Counter()

    async def call(client: httpx.AsyncClient) -> None:
        while not enough.is_set():
            try:
                answer = await client.post("/v1/chat/completions", json=body())
            except httpx.TransportError:
                others["no connection"] += 1
            else:
                others[str(answer.status_code)] += answer.status_code != 200
                answered.extend([time.monotonic()] * (answer.status_code == 200))
            await asyncio.sleep(0.02)

    try:
        await simulator.ready()
        await gateway.prepare()
        await gateway.configure(
            config(namespace, (account(namespace, USD),), (provider("sim", simulator.port),))
        )
        gateway.start()
        await gateway.ready()
        headers = {"authorization": f"Bearer {await gateway.token()}"}
        async with httpx.AsyncClient(
            trust_env=False, timeout=30, base_url=gateway.url, headers=headers
        ) as client:
            callers = [asyncio.create_task(call(client)) for _ in range(8)]
            await asyncio.sleep(1)
            assert await asyncio.to_thread(gateway.stop) == 0
            ended = time.monotonic()
            gateway.start()
            await gateway.ready()
            await asyncio.sleep(1)
            enough.set()
            await asyncio.gather(*callers)
        before = max(at for at in answered if at < ended)
        after = min(at for at in answered if at > ended)
        print(f"away for {after - before:.1f} s; answered {len(answered)}, not: {dict(others)}")
        assert set(others) <= {"503", "no connection", "200"}
        entries, bill = await rows(gateway), await simulator.bill()
        assert len(entries) == bill["calls"] == len(answered)
        assert sum(entry.cost for entry in entries) == bill["nano"]
        assert {entry.outcome for entry in entries} == {"metered"}
        assert gateway.stop() == 0
    finally:
        simulator.stop()


async def new_calls(client: httpx.AsyncClient) -> Counter[str]:
    """Call again and again while the gateway ends; count what becomes of the calls."""
    found: Counter[str] = Counter()
    for _ in range(10):
        await asyncio.sleep(0.05)
        try:
            answer = await client.post("/v1/chat/completions", json=body())
        except httpx.ConnectError:
            found["refused"] += 1
        else:
            found[str(answer.status_code)] += 1
    return found
