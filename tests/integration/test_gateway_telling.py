"""What a gateway tells of a call: its id, its trace, one line of log and its spans."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from tests.support.collector import collecting
from tests.support.gateway_process import (
    KEY,
    PROMPT,
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    post,
    provider,
)

from llmbudget.local.http1 import Answer, Request, port_of, serve

pytestmark = pytest.mark.cluster
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def lines(gateway: GatewayProcess, request_id: str) -> list[dict[str, Any]]:
    """The lines of log about one request, once it has its line as a call."""
    async with asyncio.timeout(10):
        while True:
            written = await asyncio.to_thread(gateway.log.read_text)
            parsed = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
            found = [line for line in parsed if line.get("request_id") == request_id]
            if any(line["message"] == "call" for line in found):
                return found
            await asyncio.sleep(0.05)


async def test_a_call_is_one_line_that_its_request_id_finds(gateway: GatewayProcess) -> None:
    plain = await post(gateway, body(), x_request_id="req-from.the_app:1")
    assert plain.headers["x-request-id"] == "req-from.the_app:1"
    (line,) = await lines(gateway, "req-from.the_app:1")
    assert line["entry"] == plain.headers["x-llmbudget-entry-id"]
    assert (line["status"], line["answered"], line["attempts"]) == ("ok", 200, 1)
    assert line["tokens_in"] == plain.json()["usage"]["prompt_tokens"]
    streamed = await post(gateway, body(stream=True), x_request_id="streamed")
    assert streamed.headers["x-request-id"] == "streamed"
    (line,) = await lines(gateway, "streamed")
    assert line["tokens_out"] > 0
    failed = await post(gateway, body("small@status-500"), x_request_id="failed")
    assert failed.status_code == 502
    attempt, line = await lines(gateway, "failed")
    assert (attempt["message"], line["message"]) == ("attempt", "call")
    assert (line["answered"], line["why"]) == (502, "status 500")


async def test_every_answer_has_a_request_id(gateway: GatewayProcess) -> None:
    bad = ("", "two words", 'quo"te', "x" * 129, "-begins", "héllo")
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        for path in ("/livez", "/readyz", "/nothing", "/v1/models"):
            answer = await client.get(path, headers={"x-request-id": "mine"})
            assert answer.headers["x-request-id"] == "mine", path
            for value in bad:
                headers = {"x-request-id": value.encode()}
                found = (await client.get(path, headers=headers)).headers["x-request-id"]
                assert re.fullmatch("[0-9a-f]{16}", found), value
    refused = await post(gateway, b"{", x_request_id="refused")
    assert (refused.status_code, refused.headers["x-request-id"]) == (400, "refused")
    (line,) = await lines(gateway, "refused")
    assert (line["answered"], line["attempts"]) == (400, 0)
    assert line["code"]


async def test_the_provider_is_told_of_the_callers_trace_and_of_a_span_of_its_own(
    gateway: GatewayProcess, namespace: str
) -> None:
    seen: list[Request] = []

    async def listen(request: Request, answer: Answer) -> None:
        seen.append(request)
        answer.send(400, b'{"error": {"message": "no"}}')

    async with AsyncExitStack() as stack:
        port = port_of(await stack.enter_async_context(await serve(listen, 0)))
        mine = (account(namespace, USD),)
        await gateway.configure(config(namespace, mine, (provider("sim", port),), generation=2))
        await asyncio.sleep(0.5)
        for header in (f"00-{TRACE}-{SPAN}-01", "00-nonsense", None):
            more = {} if header is None else {"traceparent": header, "tracestate": "vendor=x"}
            await post(gateway, body(), **more)
    told = [dict(request.headers).get("traceparent") for request in seen]
    assert told[0] is not None
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", told[0])
    assert SPAN not in told[0]
    assert told[1:] == [None, None]
    assert all("tracestate" not in dict(request.headers) for request in seen)


async def test_spans_reach_the_collector_and_hold_no_secret(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    with collecting() as collector:
        mine = (account(namespace, USD),)
        where = {"generation": 2, "tracing": collector.url, "tracing_private": True}
        providers = (provider("sim", simulator.port),)
        await gateway.configure(config(namespace, mine, providers, **where))
        await asyncio.sleep(0.5)
        token = await gateway.token()
        good = await post(gateway, body(stream=True), token, traceparent=f"00-{TRACE}-{SPAN}-01")
        await post(gateway, body("small@echo"), token)
        await post(gateway, body("unheard-of"), token)
        await asyncio.to_thread(collector.until, lambda spans: len(spans) == 5)
    mine_spans = {span.kind: span for span in collector.spans if span.trace_id == TRACE}
    call, attempt = mine_spans[2], mine_spans[3]
    assert (call.parent, attempt.parent) == (SPAN, call.span_id)
    assert (call.name, attempt.name) == ("POST /v1/chat/completions", "chat small")
    assert attempt.attributes["gen_ai.usage.output_tokens"] == 20
    assert attempt.attributes["llmbudget.entry_id"] == good.headers["x-llmbudget-entry-id"]
    assert call.attributes["llmbudget.budget"] == f"{namespace}/team-a"
    for secret in (KEY, PROMPT, token):
        assert secret.encode() not in collector.bytes
    refused = next(
        span
        for span in collector.spans
        if span.attributes.get("http.response.status_code") not in (None, 200)
    )
    assert not refused.failed, "to refuse is what a gateway is for"
