"""The gateway is told to end under load: what runs ends well, and nothing new begins."""

from __future__ import annotations

import asyncio
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
