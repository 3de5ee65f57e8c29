"""What callers, providers and configurations do to a gateway that wants to be exact."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack

import httpx
import pytest
from tests.support.gateway_process import (
    KEY,
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    post,
    provider,
    rows,
)

from llmbudget.local.http1 import Answer, Request, port_of, serve

pytestmark = pytest.mark.cluster


async def test_an_idempotency_key_outlives_a_fallback(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    both = account(namespace, USD, providers=("away", "sim"), retries=1)
    providers = (provider("away", 1), provider("sim", simulator.port))
    await gateway.configure(config(namespace, (both,), providers, generation=2))
    await asyncio.sleep(0.5)
    answers = [await post(gateway, body(), idempotency_key="same") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 409, 409]
    assert (await simulator.bill())["calls"] == 1


async def test_headers_that_cannot_be_read_are_refused(
    gateway: GatewayProcess, simulator: Simulator
) -> None:
    token = await gateway.token()
    document = json.dumps(body()).encode()
    for name in ("Idempotency-Key", "x-llmbudget-task-id"):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            + f"authorization: Bearer {token}\r\ncontent-length: {len(document)}\r\n".encode()
            + name.encode()
            + b": \xc3\xa9\r\nconnection: close\r\n\r\n"
            + document
        )
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400"), answer
    assert (await simulator.bill())["calls"] == 0


async def test_idle_connections_keep_nobody_out(gateway: GatewayProcess) -> None:
    sockets = []
    try:
        for _ in range(1500):
            sockets.append(socket.create_connection(("127.0.0.1", gateway.port)))
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            assert (await client.get(f"{gateway.url}/livez")).status_code == 200
        assert (await post(gateway, body())).status_code == 200
    finally:
        for each in sockets:
            each.close()


async def test_a_configuration_that_the_ledger_refuses_ends_nothing(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    wrong = config(
        namespace,
        (account(namespace, USD),),
        (provider("sim", simulator.port),),
        generation=2,
        time_zone="Mars/Olympus",
    )
    await gateway.configure(wrong)
    await asyncio.sleep(1)
    assert (await post(gateway, body())).status_code == 200
    assert "configuration refused" in gateway.log.read_text()


async def test_a_budget_that_is_removed_gets_its_last_answer(
    gateway: GatewayProcess, namespace: str
) -> None:
    async def slow(request: Request, answer: Answer) -> None:
        await asyncio.sleep(2)
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        answer.send(200, json.dumps({"choices": [], "usage": usage}).encode())

    async with AsyncExitStack() as stack:
        port = port_of(await stack.enter_async_context(await serve(slow, 0)))
        root = account(namespace, USD, consumers=())
        child = account(namespace, USD, name=f"{namespace}/agent", parent=root.name)
        providers = (provider("sim", port, idle_timeout_ms=10_000),)
        await gateway.configure(config(namespace, (root, child), providers, generation=2))
        await asyncio.sleep(0.5)
        call = asyncio.create_task(post(gateway, body()))
        await asyncio.sleep(0.7)
        await gateway.configure(config(namespace, (root,), providers, generation=3))
        answer = await call
    assert answer.status_code == 200, answer.text
    (row,) = await rows(gateway)
    assert row.cost == 10 * 600


async def test_who_was_charged_is_not_told_to_try_again(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    both = account(namespace, USD, providers=("sim", "away"), retries=1)
    providers = (provider("sim", simulator.port), provider("away", 1))
    await gateway.configure(config(namespace, (both,), providers, generation=2))
    await asyncio.sleep(0.5)
    answer = await post(gateway, body("small@reset"))
    assert answer.status_code == 502
    assert answer.headers["x-should-retry"] == "false"
    assert "was charged" in answer.json()["error"]["message"]


async def test_an_echoed_key_is_masked_however_it_is_written(
    gateway: GatewayProcess, namespace: str
) -> None:
    escaped = KEY.replace("-", "\\u002d")

    async def echo(request: Request, answer: Answer) -> None:
        answer.send(400, f'{{"error": {{"message": "no such key: {escaped}"}}}}'.encode())

    async with AsyncExitStack() as stack:
        port = port_of(await stack.enter_async_context(await serve(echo, 0)))
        mine = (account(namespace, USD),)
        await gateway.configure(config(namespace, mine, (provider("sim", port),), generation=2))
        await asyncio.sleep(0.5)
        answer = await post(gateway, body())
    assert answer.status_code == 400
    assert "[masked]" in answer.json()["error"]["message"]
    assert KEY not in json.dumps(answer.json())


async def test_a_prompt_beyond_an_assumed_context_is_held_for(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    little = account(namespace, 10_000_000)
    await gateway.configure(
        config(namespace, (little,), (provider("sim", simulator.port),), generation=2)
    )
    await asyncio.sleep(0.5)
    long = [{"role": "user", "content": "word " * 200_000}]
    answer = await post(gateway, body(messages=long))
    assert answer.status_code == 402
    assert (await simulator.bill())["calls"] == 0


async def test_a_provider_that_keeps_failing_is_left_alone_and_found_again(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    simulator.stop()
    token = await gateway.token()
    answers = [await post(gateway, body(), token) for _ in range(8)]
    assert [answer.status_code for answer in answers] == [502] * 5 + [503] * 3
    assert "Provider sim keeps failing" in answers[-1].json()["error"]["message"]
    wait = int(answers[-1].headers["retry-after"])
    assert wait == 2
    assert len(await rows(gateway)) == 5, "nothing was held for what was not sent"
    assert "provider left alone" in gateway.log.read_text()
    simulator.start()
    await simulator.ready()
    await asyncio.sleep(wait)
    assert [(await post(gateway, body(), token)).status_code for _ in range(3)] == [200] * 3
    assert "provider used again" in gateway.log.read_text()


async def test_who_may_fall_back_waits_for_no_provider_that_keeps_failing(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    both = account(namespace, USD, providers=("away", "sim"), retries=1)
    providers = (provider("away", 1), provider("sim", simulator.port))
    await gateway.configure(config(namespace, (both,), providers, generation=2))
    await asyncio.sleep(0.5)
    token = await gateway.token()
    assert [(await post(gateway, body(), token)).status_code for _ in range(8)] == [200] * 8
    tried = [row.provider for row in await rows(gateway)]
    assert (tried.count("away"), tried.count("sim")) == (5, 8)


async def test_what_the_provider_streams_is_not_kept_back(
    gateway: GatewayProcess, namespace: str
) -> None:
    arrived = asyncio.Event()
    piece = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}\n\n'

    async def speak(request: Request, answer: Answer) -> None:
        answer.start()
        answer.chunk(piece)
        await arrived.wait()
        answer.chunk(piece + usage + b"data: [DONE]\n\n")
        answer.chunk(b"")

    async with AsyncExitStack() as stack:
        port = port_of(await stack.enter_async_context(await serve(speak, 0)))
        patient = provider("sim", port, idle_timeout_ms=20_000)
        mine = (account(namespace, USD),)
        await gateway.configure(config(namespace, mine, (patient,), generation=2))
        await asyncio.sleep(0.5)
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=10))
        headers = {"authorization": f"Bearer {await gateway.token()}"}
        url = f"{gateway.url}/v1/chat/completions"
        sent = client.stream("POST", url, json=body(stream=True), headers=headers)
        response = await stack.enter_async_context(sent)
        pieces = response.aiter_bytes()
        assert await anext(pieces) == piece
        arrived.set()
        rest = b"".join([piece async for piece in pieces])
    assert rest.startswith(piece)
    assert rest.endswith(b"data: [DONE]\n\n")
    assert [row.tokens_out for row in await rows(gateway)] == [2]
