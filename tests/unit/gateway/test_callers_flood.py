"""Callers that open connections and say little or nothing: others are served all the same."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.http_callers import HEAD, LAST, PLAIN, Echo, Running, both_event_loops, serving

from llmbudget.gateway import callers
from llmbudget.gateway import serving as module
from llmbudget.gateway.incoming import Incoming

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:Warning")

FEW = 32
MANY = 200

event_loop_policy = both_event_loops


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_HANDSHAKES", FEW)
    monkeypatch.setattr(module, "_MOST_CONNECTIONS", FEW)
    monkeypatch.setattr(callers, "_LET_GO", 4)


def hello() -> bytes:
    """Make the first message of a TLS handshake."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    talk = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        talk.do_handshake()
    return outgoing.read()


@contextlib.asynccontextmanager
async def flooded(running: Running, said: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Open many connections, say this on each, and leave them open."""
    async with contextlib.AsyncExitStack() as stack:
        readers = []
        for _ in range(MANY):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            stack.callback(writer.close)
            writer.write(said)
            readers.append(reader)
        yield readers


async def ended(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(0.01):
            while await reader.read(4096):
                pass
    return reader.at_eof() or reader.exception() is not None


HALF = {
    "nothing": b"",
    "half a hello": hello()[:50],
    "a hello, and no answer to the answer": hello(),
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("said", HALF)
async def test_half_open_handshakes_give_way_to_who_means_it(tmp_path: Path, said: str) -> None:
    async with serving(echo := Echo(), tls=tmp_path) as running:
        async with running.connected() as (reader, writer), flooded(running, HALF[said]) as others:
            for _ in range(5):
                assert (await running.say(LAST)).startswith(b"HTTP/1.1 200 ")
            assert len(running.server._arriving) <= FEW
            # Those that came first went first; a caller whose connection stands keeps it.
            assert await ended(others[0])
            assert not await ended(others[-1])
            writer.write(PLAIN)
            assert await reader.readuntil(b"hello")
        await running.until(lambda: not running.server._arriving)
    assert len(echo.asked) == 6


@pytest.mark.usefixtures("few")
async def test_a_handshake_that_comes_to_no_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.3)
    async with serving(Echo(), tls=tmp_path) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        await running.until(lambda: not running.server._arriving)
        writer.close()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("said", [b"", HEAD[:20]])
async def test_connections_that_ask_nothing_give_way_to_who_does(said: bytes) -> None:
    go_on = asyncio.Event()

    async def slowly(exchange: Incoming) -> None:
        if exchange.path == "/a":
            await go_on.wait()
        exchange.response_bytes(200, [], b"done")

    async with serving(slowly) as running, running.connected() as (reader, writer):
        writer.write(PLAIN)
        async with flooded(running, said):
            for _ in range(5):
                assert (await running.say(LAST)).endswith(b"done")
            assert len(running.connections) <= FEW
        # A call that is under way is not closed for others.
        go_on.set()
        assert await reader.readuntil(b"done")


@pytest.mark.usefixtures("few")
async def test_who_asked_before_is_let_go_after_who_never_did() -> None:
    async with serving(Echo()) as running, running.connected() as (reader, writer):
        writer.write(PLAIN)
        assert await reader.readuntil(b"hello")
        async with flooded(running, b""):
            assert (await running.say(LAST)).startswith(b"HTTP/1.1 200 ")
            writer.write(PLAIN)
            assert await reader.readuntil(b"hello")


@pytest.mark.usefixtures("few")
async def test_where_all_connections_have_a_call_under_way_one_more_is_refused() -> None:
    go_on = asyncio.Event()

    async def slowly(exchange: Incoming) -> None:
        await go_on.wait()
        exchange.response_bytes(200, [], b"done")

    async with serving(slowly) as running, flooded(running, PLAIN):
        await running.until(lambda: len(running.connections) == FEW)
        with contextlib.suppress(ConnectionError):
            assert await running.say(LAST) == b""
        go_on.set()
