"""HTTP/1.1 to callers, tried on the wire: framing, order, bounds of time and of memory."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.support.http_callers import (
    CHUNKED,
    HEAD,
    LAST,
    MEGABYTE,
    PLAIN,
    Echo,
    both_event_loops,
    serving,
)

from llmbudget.gateway import callers as module
from llmbudget.gateway.incoming import Incoming
from llmbudget.gateway.wire import CallerGone

H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\n"


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:Warning")


event_loop_policy = both_event_loops


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK_SECONDS", "HEAD_SECONDS", "IDLE_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(module, name, 0.05)
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.2)


@pytest.mark.parametrize("asked", [PLAIN, CHUNKED])
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_body_is_read_however_it_comes(asked: bytes, size: int) -> None:
    echo = Echo()
    async with serving(echo) as running:
        pieces = [asked[at : at + size] for at in range(0, len(asked), size)]
        answer = await running.say(*pieces, LAST)
    assert echo.asked == [("POST", "/a", b"hello"), ("GET", "/last", b"")]
    first, _, second = answer.partition(b"hello")
    assert first.startswith(b"HTTP/1.1 200 OK\r\nx-length: 5\r\ndate: ")
    assert first.endswith(b"content-length: 5\r\n\r\n")
    assert b"connection: close\r\n" not in first
    assert b"connection: close\r\n" in second


async def test_requests_that_come_at_once_are_answered_in_their_order() -> None:
    under_way, most = 0, 0

    async def slowly(exchange: Incoming) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01 if exchange.path == "/a" else 0)
        under_way -= 1
        exchange.response_bytes(200, [], exchange.path.encode())

    async with serving(slowly) as running:
        answer = await running.say(PLAIN + PLAIN.replace(b"/a", b"/b") + PLAIN + LAST)
    bodies = [part.split(b"\r\n\r\n")[1] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"/a", b"/b", b"/a", b"/last"]
    assert most == 1


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a%20b?x=1", "/a b"),
        (b"http://other/y", "/y"),
        (b"*", "*"),
        (b"/" + b"a" * 300, "/" + "a" * 300),
        (b"/%ff", "/\ufffd"),
    ],
)
async def test_the_path_is_decoded(target: bytes, path: str) -> None:
    echo = Echo()
    async with serving(echo) as running:
        await running.say(LAST.replace(b"/last", target))
    assert [asked[1] for asked in echo.asked] == [path]


REFUSED = {
    "two lengths": HEAD + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "a length beside chunks": HEAD + b"content-length: 5\r\n" + CHUNKED.removeprefix(HEAD),
    "another coding": CHUNKED.replace(b"chunked", b"gzip, chunked"),
    "a line feed alone": b"GET / HTTP/1.1\nhost: x\n\n",
    "chunks of an old version": CHUNKED.replace(b"1.1", b"1.0"),
    "too many headers": HEAD + b"a:b\r\n" * 200 + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "an old version": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "a chunk that is no number": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "a head without end": HEAD + b"x: " + b"a" * module.MAX_HEAD * 6,
    "trailers without end": CHUNKED.partition(b"x-t")[0] + b"x: " + b"a" * module.MAX_HEAD * 6,
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_no_request_is_refused_and_nothing_after_it_is_read(what: str) -> None:
    echo = Echo()
    async with serving(echo) as running:
        try:
            answer = await running.say(REFUSED[what], PLAIN)
        except ConnectionError:
            answer = b""  # it was still sending when the connection was closed
    assert echo.asked == []
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") <= 1
    if answer:
        assert b"This is no request: " in answer
        assert b"connection: close\r\n" in answer


async def test_what_follows_a_request_and_is_none_does_not_cost_its_answer() -> None:
    echo = Echo()
    async with serving(echo) as running:
        answer = await running.say(PLAIN + b"\x00garbage")
    assert answer.endswith(b"hello")
    assert b"connection: close" in answer


async def test_an_upgrade_is_not_made_and_its_request_is_answered() -> None:
    """As Java's client asks for HTTP/2 on plain HTTP."""
    echo = Echo()
    async with serving(echo) as running:
        await running.say(
            HEAD + H2C + PLAIN.removeprefix(HEAD),
            HEAD + H2C + CHUNKED.removeprefix(HEAD),
            LAST.replace(b"host", H2C + b"host").replace(b"connection: close\r\n", b""),
            LAST,
        )
    assert [asked[2] for asked in echo.asked] == [b"hello", b"hello", b"", b""]


async def test_who_waits_to_send_is_told_to_go_on() -> None:
    async with serving(Echo()) as running, running.connected() as (reader, writer):
        writer.write(HEAD + b"content-length: 5\r\nexpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 OK")


async def test_who_asks_for_the_head_gets_no_body() -> None:
    async def answer(exchange: Incoming) -> None:
        exchange.response_bytes(200, [], b"hello")

    async with serving(answer) as running:
        found = await running.say(LAST.replace(b"GET", b"HEAD"))
    assert b"content-length: 5\r\n" in found
    assert found.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_stream_ends_as_its_version_says(version: bytes) -> None:
    async def answer(exchange: Incoming) -> None:
        transport = exchange.response_stream(200, [])
        for piece in (b"one", b"", b"two"):
            await transport.send_bytes(piece)

    async with serving(answer) as running:
        found = await running.say(LAST.replace(b"1.1", version))
    chunked = b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert found.partition(b"\r\n\r\n")[2] == (chunked if version == b"1.1" else b"onetwo")


@pytest.mark.parametrize("begun", [True, False])
async def test_an_answer_that_breaks_off_is_never_taken_for_whole(begun: bool) -> None:
    async def answer(exchange: Incoming) -> None:
        if begun:
            await exchange.response_stream(200, []).send_bytes(b"one")
            await asyncio.sleep(0.01)
        raise asyncio.CancelledError

    async with serving(answer) as running:
        with contextlib.suppress(ConnectionError):
            assert not (await running.say(LAST)).endswith(b"0\r\n\r\n")


async def test_a_header_with_a_line_break_is_never_sent() -> None:
    errors: list[Exception] = []

    async def answer(exchange: Incoming) -> None:
        try:
            exchange.response_bytes(200, [("x-a", "1\r\nx-b: 2")], b"")
        except ValueError as error:
            errors.append(error)
            raise asyncio.CancelledError from None

    async with serving(answer) as running:
        with contextlib.suppress(ConnectionError):
            assert await running.say(LAST) == b""
    assert len(errors) == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("begun", [b"", HEAD, PLAIN, PLAIN + b"GET"])
async def test_a_head_that_does_not_come_is_given_up(begun: bytes) -> None:
    async with serving(Echo()) as running:
        assert (await running.say(begun)).endswith(b"hello" if PLAIN in begun else b"")


async def refuse(exchange: Incoming) -> None:
    """Answer without a look at the body."""
    exchange.response_bytes(401, [], b"no")


async def test_an_answer_before_the_end_of_a_large_body_arrives() -> None:
    body = HEAD + b"content-length: %d\r\n\r\n" % (4 * MEGABYTE)
    async with serving(refuse) as running:
        answer = await running.say(body, *[b"x" * MEGABYTE] * 4)
    assert answer.endswith(b"no")
    assert b"connection: close" in answer


@pytest.mark.usefixtures("hasty")
async def test_nobody_waits_for_the_rest_of_a_body_that_is_not_wanted() -> None:
    async with serving(refuse) as running:
        answer = await running.say(HEAD + b"content-length: 100\r\n\r\n", b"x")
    assert answer.endswith(b"no")


async def test_after_the_last_answer_nothing_is_taken_any_more() -> None:
    """Whoever was told that the connection ends sends its next request by another one."""
    asked: list[str] = []

    async def answer(exchange: Incoming) -> None:
        asked.append(exchange.path)
        exchange.response_bytes(401, [], b"no")

    async with serving(answer) as running, running.connected() as (reader, writer):
        writer.write(PLAIN[:-2])
        assert (await reader.readuntil(b"no")).startswith(b"HTTP/1.1 401 ")
        writer.write(PLAIN[-2:] + PLAIN.replace(b"/a", b"/b"))
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    assert asked == ["/a"]


async def test_a_body_that_is_not_read_does_not_fill_the_memory() -> None:
    held: list[int] = []
    go_on = asyncio.Event()

    async def slowly(exchange: Incoming) -> None:
        await go_on.wait()
        held.append(exchange.unread)
        size = sum([len(chunk) async for chunk in exchange])
        exchange.response_bytes(200, [], str(size).encode())

    async with serving(slowly) as running:
        said = asyncio.create_task(
            running.say(
                HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % (20 * MEGABYTE),
                *[b"x" * MEGABYTE] * 20,
            )
        )
        await asyncio.sleep(0.2)
        go_on.set()
        assert (await said).endswith(str(20 * MEGABYTE).encode())
    assert held[0] < 2 * MEGABYTE


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("reads", [True, False])
async def test_a_slow_reader_holds_the_stream_up_and_one_that_stalls_is_gone(reads: bool) -> None:
    sent, gone = 0, asyncio.Event()

    async def endless(exchange: Incoming) -> None:
        nonlocal sent
        transport = exchange.response_stream(200, [])
        try:
            while True:
                await transport.send_bytes(b"x" * 10_000)
                sent += 10_000
                await asyncio.sleep(0)
        except CallerGone:
            gone.set()

    async with serving(endless) as running, running.connected() as (reader, writer):
        writer.write(LAST)
        read = 0
        for _ in range(20 if reads else 0):
            await asyncio.sleep(0.05)
            # Enough to make room, and far less than could be sent.
            read += len(await reader.readexactly(2 * MEGABYTE))
        if reads:
            assert not gone.is_set()
        assert sent < read + 20 * MEGABYTE
        async with asyncio.timeout(5):
            await gone.wait()


async def test_who_leaves_in_the_middle_of_its_body_is_known_to_be_gone() -> None:
    echo = Echo()
    async with serving(echo) as running:
        async with running.connected() as (_, writer):
            writer.write(PLAIN[:-2])
            await writer.drain()
            await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            while not echo.gone:
                await asyncio.sleep(0.01)
    assert echo.asked == []


async def test_at_the_end_what_runs_ends_and_what_is_idle_is_closed() -> None:
    go_on = asyncio.Event()

    async def slowly(exchange: Incoming) -> None:
        await go_on.wait()
        exchange.response_bytes(200, [], b"done")

    async with (
        serving(slowly) as running,
        running.connected() as (idle, _),
        running.connected() as (busy, writer),
    ):
        writer.write(PLAIN)
        await asyncio.sleep(0.05)
        running.server.stop()
        async with asyncio.timeout(5):
            assert await idle.read() == b""
        go_on.set()
        async with asyncio.timeout(5):
            answer = await busy.read()
    assert answer.endswith(b"done")
    assert b"connection: close" in answer
