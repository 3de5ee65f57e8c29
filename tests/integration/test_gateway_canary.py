"""A provider that repeats the key that it was sent, in every API and every way of answering: nobody
else gets to know it, nor what was asked."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any, Final

import httpx
import pytest
from tests.support.canary import assert_nowhere
from tests.support.collector import collecting
from tests.support.gateway_process import (
    KEY,
    PROMPT,
    USD,
    GatewayProcess,
    account,
    config,
    media_models,
    model,
    provider,
    rows,
)
from tests.support.sound import mp3

from llmbudget.api.credentials import KeyHeader
from llmbudget.api.provider import Protocol
from llmbudget.contract.config import GatewayConfig, PostHogConfig
from llmbudget.local.http1 import Answer, Request, port_of, serve

pytestmark = pytest.mark.cluster
MESSAGES: Final = [{"role": "user", "content": PROMPT}]
BODIES: Final[Mapping[str, dict[str, Any]]] = {
    "chat/completions": {"model": "small", "messages": MESSAGES, "max_tokens": 9},
    "responses": {"model": "small", "input": PROMPT, "max_output_tokens": 9},
    "completions": {"model": "small", "prompt": PROMPT, "max_tokens": 9},
    "embeddings": {"model": "small", "input": PROMPT},
    "moderations": {"model": "free", "input": PROMPT},
    "audio/speech": {"model": "tts", "input": PROMPT, "voice": "alloy"},
    "audio/transcriptions": {"model": "whisper", "prompt": PROMPT},
    "images/generations": {"model": "draw", "prompt": PROMPT},
    "messages": {"model": "claude/small", "messages": MESSAGES, "max_tokens": 9},
    "messages/count_tokens": {"model": "claude/small", "messages": MESSAGES},
}
AZURE: Final = ("chat/completions", "embeddings")
STREAMING: Final[Mapping[str, dict[str, str]]] = {
    **{
        path: {"model": "streams/small"}
        for path in ("chat/completions", "responses", "completions")
    },
    "messages": {},
}


def _said(request: Request) -> str:
    """Repeat the request's head, and the key by itself in other spellings."""
    key = KEY.encode()
    spelled = (b64encode(key).decode(), b64encode(b"x" + key).decode(), KEY.replace("-", "%2D"))
    return json.dumps({"you": dict(request.headers), "sent": spelled})


def _error(status: int) -> Callable[[Request, Answer], None]:
    def answer(request: Request, to: Answer) -> None:
        text = json.dumps({"error": {"message": _said(request), "type": KEY, "code": "ESCAPED"}})
        text = text.replace("ESCAPED", KEY.replace("-", "\\u002d"))
        headers = {"x-key": KEY, "retry-after": KEY, "www-authenticate": KEY}
        to.send(status, text.encode(), headers=headers)

    return answer


def _redirect(request: Request, to: Answer) -> None:
    to.send(307, _said(request).encode(), headers={"location": f"https://a.example/?key={KEY}"})


def _plain(request: Request, to: Answer) -> None:
    pictures = [{"b64_json": b64encode(KEY.encode()).decode(), "url": f"https://a.b/{KEY}"}]
    document = {"said": _said(request), "text": KEY, "data": pictures, "model": KEY, "id": KEY}
    to.send(200, json.dumps(document).encode(), f"application/json; key={KEY}")


def _events(request: Request, to: Answer) -> None:
    to.start()
    sound = b64encode(KEY.encode()).decode()
    for fields in (
        {"type": "message_start", "message": {"id": KEY}},
        {"choices": [{"delta": {"content": _said(request)}}]},
        {"type": "speech.audio.delta", "audio": sound},
        {"type": "error", "error": {"message": KEY}},
    ):
        text = f"event: {KEY}\ndata: {json.dumps(fields)}\n\n".encode()
        for at in range(0, len(text), 7):
            to.chunk(text[at : at + 7])
    to.chunk(f": {KEY}\n\n".encode())
    to.chunk(b"")


def _sound(request: Request, to: Answer) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\nconnection: close\r\n\r\n"
    to.raw(head + b"\0" * 1000)
    for at in range(0, len(KEY), 3):
        to.raw(KEY[at : at + 3].encode())
    to.raw(b"\0" * 10)
    to.close()


def _nonsense(request: Request, to: Answer) -> None:
    to.raw(f"{KEY}\r\n\r\n".encode())
    to.close()


WAYS: Final[Mapping[str, Callable[[Request, Answer], None]]] = {
    **{f"error-{status}": _error(status) for status in (400, 401, 404, 429, 500, 504)},
    **{"redirect": _redirect, "plain": _plain, "events": _events, "sound": _sound},
    "nonsense": _nonsense,
}


async def test_a_provider_that_tells_all_it_knows(gateway: GatewayProcess, namespace: str) -> None:
    told: list[bytes] = []
    called = 0

    async def answer(request: Request, to: Answer) -> None:
        WAYS[request.path.split("/")[1]](request, to)

    async def posthog(request: Request, to: Answer) -> None:
        told.append(request.body)
        to.send(200, b'{"status": 1}')

    with collecting() as collector:
        async with AsyncExitStack() as stack:
            port = port_of(await stack.enter_async_context(await serve(answer, 0)))
            other = port_of(await stack.enter_async_context(await serve(posthog, 0)))
            (gateway.folder / "posthog").write_text("phc_test")
            for generation, way in enumerate(WAYS, start=2):
                where = f"http://127.0.0.1:{port}/{way}"
                document = _telling(namespace, where, other, collector.url, generation)
                await gateway.configure(document)
                await asyncio.sleep(0.5)
                called += await _call_everything(gateway)
            found = await rows(gateway)
            async with asyncio.timeout(20):
                while b"".join(told).count(b'"llm_usage"') < len(found):
                    await asyncio.sleep(0.1)
        await asyncio.to_thread(collector.until, lambda spans: len(spans) >= called)
    assert len(found) >= called, "each call had an attempt"
    for secret in (KEY, PROMPT):
        assert_nowhere(secret, "the outbox", b"".join(told))
        assert_nowhere(secret, "the spans", collector.bytes)


def _telling(namespace: str, at: str, posthog: int, tracing: str, generation: int) -> GatewayConfig:
    """A budget with providers of all kinds at one place, and all that tells of calls."""
    plain = (model("small", "small"), model("free", "free"))
    azure = {"endpoint": at, "api_version": "2024-10-21", "key_header": KeyHeader.API_KEY}
    spoken = {"protocol": Protocol.ANTHROPIC, "key_header": KeyHeader.X_API_KEY}
    providers = (
        # One that fails five times is left alone, so there are several.
        provider("sim", 0, models=plain, endpoint=at),
        provider("streams", 0, models=plain, endpoint=at),
        provider("media", 0, models=media_models(), endpoint=at),
        provider("events", 0, models=media_models(), endpoint=at),
        provider("azure", 0, models=plain, **azure),
        provider("claude", 0, models=plain, endpoint=at, **spoken),
    )
    names = tuple(each.name for each in providers)
    mine = account(namespace, 1000 * USD, providers=names, ladder=("small",))
    host = f"http://127.0.0.1:{posthog}"
    sent = PostHogConfig(host=host, allow_private=True, sample_rate=Decimal(1))
    more: dict[str, Any] = {"posthog": sent, "tracing": tracing, "tracing_private": True}
    return config(namespace, (mine,), providers, generation, **more)


async def _call_everything(gateway: GatewayProcess) -> int:
    """Call each operation, plain and streamed; return how many calls there were."""
    headers = {"authorization": f"Bearer {await gateway.token()}"}
    calls = [(path, body) for path, body in BODIES.items()]
    calls += [(path, BODIES[path] | {"stream": True} | STREAMING[path]) for path in STREAMING]
    calls += [(path, BODIES[path] | {"model": f"azure/{BODIES[path]['model']}"}) for path in AZURE]
    events: tuple[tuple[str, dict[str, Any]], ...] = (
        ("images/generations", {"model": "events/draw", "stream": True}),
        ("audio/speech", {"model": "events/speak"}),
        ("audio/speech", {"model": "events/tts", "stream_format": "sse"}),
    )
    calls += [(path, BODIES[path] | fields) for path, fields in events]
    base = f"{gateway.url}/v1/"
    async with httpx.AsyncClient(trust_env=False, timeout=20, headers=headers) as client:
        for path, body in calls:
            url = f"{base}{path}"
            try:
                if path == "audio/transcriptions":
                    files = {"file": ("a.mp3", mp3(96), "audio/mpeg")}
                    answer = await client.post(url, data=body, files=files)
                else:
                    answer = await client.post(url, json=body)
            except httpx.RemoteProtocolError:
                continue
            assert answer.status_code != 500, (path, answer.text)
            assert "x-key" not in answer.headers
    return len(calls)
