"""Callers that leave, stall, flood or go on when they should not: on the wire, with the event loop
of the standard library and that of a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.support.http_callers import (
    HEAD,
    LAST,
    MEGABYTE,
    PLAIN,
    Echo,
    Running,
    both_event_loops,
    serving,
)

from llmbudget.gateway import callers as module
from llmbudget.gateway.callers import Application
from llmbudget.gateway.incoming import Incoming
from llmbudget.gateway.wire import CallerGone

LARGE = 16 * MEGABYTE
Serve = Callable[[Application], contextlib.AbstractAsyncContextManager[Running]]


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:Warning")


event_loop_policy = both_event_loops


@pytest.fixture(params=["plain", "TLS"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Serve:
    return partial(serving, tls=tmp_path if request.param == "TLS" else None)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "STALLED_SECONDS", 1.0)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.read()


async def large(exchange: Incoming) -> None:
    """Answer with more than any buffer takes."""
    exchange.response_bytes(200, [], b"x" * LARGE)


async def test_nothing_is_kept_of_a_connection_that_was_closed(serve: Serve) -> None:
    async with serve(Echo()) as running:
        gc.disable()
        try:
            async with running.connected() as (reader, writer):
                writer.write(PLAIN)
                await reader.readuntil(b"hello")
                kept = [weakref.ref(each) for each in running.connections]
            await running.until(lambda: not running.connections)
            await running.until(lambda: not any(each() for each in kept))
        finally:
            gc.enable()
    assert kept


async def test_only_so_many_requests_wait_on_one_connection(serve: Serve) -> None:
    asked, go_on = 0, asyncio.Event()

    async def slowly(exchange: Incoming) -> None:
        nonlocal asked
        asked += 1
        await go_on.wait()
        exchange.response_bytes(200, [], b"done")

    async with serve(slowly) as running, running.connected() as (reader, writer):
        writer.write(LAST.replace(b"connection: close\r\n", b"") * 100)
        await running.until(lambda: asked == 1)
        await asyncio.sleep(0.05)
        go_on.set()
        answer = await read_all(reader)
    assert asked == answer.count(b"HTTP/1.1 200 ") <= 1 + module._MOST_WAITING
    assert answer.endswith(b"done")


async def until_it_fills(exchange: Incoming) -> None:
    """Answer with a little more than the kernel takes, which holds no writer up."""
    stream = exchange.response_stream(200, [])
    transport = exchange._way._transport  # type: ignore[attr-defined]
    while not transport.get_write_buffer_size():
        await stream.send_bytes(b"x" * 20_000)
        await asyncio.sleep(0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("answer", [until_it_fills, large])
@pytest.mark.parametrize("asked", [LAST, PLAIN])
async def test_who_reads_nothing_loses_its_connection(
    answer: Application, asked: bytes, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.1)
    async with serve(answer) as running, running.connected() as (_, writer):
        writer.transport.pause_reading()
        writer.write(asked)
        await running.until(lambda: bool(running.connections))
        await running.until(lambda: not running.connections)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("asked", [LAST, PLAIN])
async def test_who_reads_slowly_gets_all_of_a_large_answer(asked: bytes, serve: Serve) -> None:
    async with serve(large) as running, running.connected() as (reader, writer):
        writer.write(asked)
        head = await reader.readuntil(b"\r\n\r\n")
        read = 0
        while read < LARGE:
            read += len(await reader.readexactly(MEGABYTE))
            await asyncio.sleep(0.05)
        assert head.startswith(b"HTTP/1.1 200 ")


async def test_who_leaves_before_a_stream_begins_is_gone_and_no_more(serve: Serve) -> None:
    outcome: list[str] = []

    async def late(exchange: Incoming) -> None:
        await left.wait()
        await asyncio.sleep(0.05)
        stream = exchange.response_stream(200, [])
        try:
            await stream.send_bytes(b"x")
        except CallerGone:
            outcome.append("gone")

    async with serve(late) as running:
        left = asyncio.Event()
        async with running.connected() as (_, writer):
            writer.write(PLAIN)
            await asyncio.sleep(0.05)
        await running.until(lambda: not running.connections)
        left.set()
        await running.until(lambda: bool(outcome))
    assert outcome == ["gone"]


async def test_a_late_refusal_arrives_though_much_of_the_body_came_before(serve: Serve) -> None:
    async def late(exchange: Incoming) -> None:
        await asyncio.sleep(0.2)
        exchange.response_bytes(401, [], b"no")

    body = HEAD + b"content-length: %d\r\n\r\n" % (12 * MEGABYTE)
    async with serve(late) as running:
        assert (await running.say(body, *[b"x" * MEGABYTE] * 12)).endswith(b"no")


async def unread(running: Running, *asked: bytes) -> bytes:
    """Send these while nothing is read, and read all at last."""
    async with running.connected() as (reader, writer):
        writer.transport.pause_reading()
        for each in asked:
            writer.write(each)
            await asyncio.sleep(0.1)
        writer.transport.resume_reading()
        return await read_all(reader)


async def test_a_request_that_waits_is_not_begun_once_the_connection_ends(serve: Serve) -> None:
    asked: list[str] = []

    async def answer(exchange: Incoming) -> None:
        asked.append(exchange.path)
        running.server.stop()
        await asyncio.sleep(0)
        await large(exchange)

    async with serve(answer) as running:
        await unread(running, PLAIN, PLAIN.replace(b"/a", b"/b"))
    assert asked == ["/a"]


async def test_what_is_no_request_is_told_after_those_before_it(serve: Serve) -> None:
    asked: list[str] = []

    async def answer(exchange: Incoming) -> None:
        asked.append(exchange.path)
        body = b"x" * LARGE if exchange.path == "/a" else b"second"
        exchange.response_bytes(200, [], body)

    async with serve(answer) as running:
        found = await unread(running, PLAIN, PLAIN.replace(b"/a", b"/b") + b"\x00garbage")
    assert asked == ["/a", "/b"]
    assert found.endswith(b"second")
    assert b" 400 " not in found


async def test_reading_goes_on_after_an_answer_that_was_read_late(serve: Serve) -> None:
    asked: list[bytes] = []

    async def answer(exchange: Incoming) -> None:
        asked.append(b"".join([chunk async for chunk in exchange]))
        await large(exchange) if len(asked) == 1 else exchange.response_bytes(200, [], b"end")

    async with serve(answer) as running, running.connected() as (reader, writer):
        writer.transport.pause_reading()
        writer.write(PLAIN + PLAIN[:-5])
        await asyncio.sleep(0.1)
        writer.write(b"again" + LAST)
        writer.transport.resume_reading()
        assert (await read_all(reader)).endswith(b"end")
    assert asked == [b"hello", b"again", b""]


@pytest.mark.parametrize("end", ["the server stops", "what comes is no request"])
async def test_a_stream_that_was_begun_before_the_end_is_the_last(serve: Serve, end: str) -> None:
    go_on = asyncio.Event()

    async def stream(exchange: Incoming) -> None:
        transport = exchange.response_stream(200, [])
        await transport.send_bytes(b"begun")
        await go_on.wait()

    async with serve(stream) as running, running.connected() as (reader, writer):
        writer.write(PLAIN)
        await reader.readuntil(b"begun")
        if end == "the server stops":
            running.server.stop()
        else:
            writer.write(b"\x00garbage")
        await asyncio.sleep(0.05)
        go_on.set()
        assert (await read_all(reader)).endswith(b"0\r\n\r\n")


async def test_a_head_has_its_time_wherever_it_begins(
    monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.2)
    async with serve(Echo()) as running:
        with contextlib.suppress(ConnectionError):
            assert (await running.say(PLAIN + b"GET / HT")).endswith(b"hello")
