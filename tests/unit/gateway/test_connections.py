"""Connections to a provider, tried against a server of raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from llmbudget.gateway.connections import MAX_HEAD, Connection, Doubtful, NotSent, Pool

REQUEST = b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request of a connection by the function given, and counts connections."""

    def __init__(self, answer: Answering) -> None:
        self._answer = answer
        self.connections = 0
        self.requests = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                await reader.readexactly(len(REQUEST))
                self.requests += 1
                await self._answer(reader, writer)
        writer.close()


@contextlib.asynccontextmanager
async def serving(
    answer: bytes | Answering, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    async def write(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(answer, bytes)
        writer.write(answer)
        await writer.drain()

    server = Server(write if isinstance(answer, bytes) else answer)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def pool_of(port: int, tls: ssl.SSLContext | None = None, host: str = "localhost") -> Pool:
    return Pool(host, "127.0.0.1", port, tls, 2.0)


async def begun(pool: Pool, *, idle: float = 2.0, total: float = 5.0) -> Connection:
    connection = await pool.take()
    connection.send(REQUEST, idle_seconds=idle, total_seconds=total)
    await connection.head()
    return connection


async def rest(connection: Connection) -> bytes:
    parts = []
    while (chunk := await connection.read_chunk()) is not None:
        parts.append(chunk)
    return b"".join(parts)


async def fetched(pool: Pool, **times: float) -> bytes:
    """Send the request, and give the answer's body."""
    connection = await begun(pool, **times)
    try:
        return await rest(connection)
    finally:
        pool.give_back(connection)


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        CHUNKED,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Hints\r\na: b\r\n\r\n" + OK,
    ],
    ids=["length", "chunked", "continue", "hints"],
)
async def test_one_connection_serves_call_after_call(answer: bytes) -> None:
    async with serving(answer) as server:
        pool = pool_of(server.port)
        assert [await fetched(pool) for _ in range(3)] == [b"hello"] * 3
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        OK + b"x",
    ],
    ids=["close", "http-1.0", "second-answer", "stray-byte"],
)
async def test_a_connection_that_may_not_be_used_again_is_not(answer: bytes) -> None:
    async with serving(answer) as server:
        pool = pool_of(server.port)
        assert await fetched(pool) == b"hello"
        assert await fetched(pool) == b"hello"
        assert server.connections == 2


async def test_an_answer_before_the_question_is_nobodys() -> None:
    async def late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")

    async with serving(late) as server:
        pool = pool_of(server.port)
        assert await fetched(pool) == b"hello"
        await asyncio.sleep(0.2)
        assert await fetched(pool) == b"hello"
        assert server.connections == 2


async def test_a_connection_that_the_provider_closed_is_replaced_without_a_second_request() -> None:
    async def once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        writer.close()

    async with serving(once) as server:
        pool = pool_of(server.port)
        for _ in range(3):
            assert await fetched(pool) == b"hello"
            await asyncio.sleep(0.05)
        assert (server.connections, server.requests) == (3, 3)


async def test_a_body_may_end_with_the_connection() -> None:
    async def until_close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        writer.close()

    async with serving(until_close) as server:
        assert await fetched(pool_of(server.port)) == b"hello"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-server\r\n", "no answer came: it is no HTTP"),
        (
            b"HTTP/1.1 200 OK\r\na: " + b"b" * MAX_HEAD,
            f"its headers have more than {MAX_HEAD} bytes",
        ),
        (b"HTTP/1.1 101 Go\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "no answer came"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello", "no HTTP"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "broke off: it is no HTTP",
        ),
    ],
    ids=["ssh", "headers", "upgrade", "both-framings", "two-lengths", "negative", "chunk-size"],
)
async def test_what_is_no_answer_leaves_a_doubt(answer: bytes, why: str) -> None:
    async with serving(answer) as server:
        with pytest.raises(Doubtful, match=why):
            await fetched(pool_of(server.port), idle=1.0)


@pytest.mark.parametrize("sent", [b"", OK[:10], OK[:-2]], ids=["nothing", "half-head", "half-body"])
async def test_a_connection_that_ends_early_leaves_a_doubt(sent: bytes) -> None:
    async def cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    async with serving(cut) as server:
        with pytest.raises(Doubtful, match="the connection was closed"):
            await fetched(pool_of(server.port))
        assert server.requests == 1


@pytest.mark.parametrize("sent", [b"", OK[:-2]], ids=["no-head", "no-end"])
async def test_silence_ends(sent: bytes) -> None:
    async with serving(sent) as server:
        with pytest.raises(Doubtful, match=r"nothing came for 0\.2 s"):
            await fetched(pool_of(server.port), idle=0.2)


async def test_silence_ends_on_a_connection_that_answered_before() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if server.requests == 1:
            writer.write(OK)

    async with serving(answer) as server:
        pool = pool_of(server.port)
        assert await fetched(pool, idle=30.0) == b"hello"
        with pytest.raises(Doubtful, match=r"nothing came for 0\.05 s"):
            await begun(pool, idle=0.05)
        assert (server.connections, server.requests) == (1, 2)


async def test_a_connection_that_is_kept_is_not_timed() -> None:
    async with serving(OK) as server:
        pool = pool_of(server.port)
        assert await fetched(pool, idle=0.05) == b"hello"
        await asyncio.sleep(0.1)
        assert await fetched(pool, idle=0.05) == b"hello"
        assert server.connections == 1


async def test_a_trickle_ends_too() -> None:
    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b".")
            await asyncio.sleep(0.02)

    async with serving(trickle) as server:
        with pytest.raises(Doubtful, match="it took too long"):
            await fetched(pool_of(server.port), idle=0.2, total=0.6)


async def test_what_nobody_reads_is_not_taken_in() -> None:
    sent = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n")
        for _ in range(1024):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with serving(flood) as server:
        pool = pool_of(server.port)
        connection = await begun(pool, idle=0.2)
        await asyncio.sleep(0.5)  # waiting for us is no silence of the provider's
        held = sent
        assert held < 16 * 1024 * 1024
        assert len(await rest(connection)) == 67_108_864
        pool.give_back(connection)


async def test_an_answer_that_nobody_read_ends_the_connection() -> None:
    async with serving(OK[:-2]) as server:
        pool = pool_of(server.port)
        pool.give_back(await begun(pool))
        pool.give_back(await begun(pool))
        assert server.connections == 2


async def test_nothing_is_sent_where_nobody_listens() -> None:
    async with serving(OK) as server:
        port = server.port
    with pytest.raises(NotSent, match="can't connect"):
        await pool_of(port).take()


async def test_a_closed_pool_keeps_nothing() -> None:
    async with serving(OK) as server:
        pool = pool_of(server.port)
        connection = await begun(pool)
        pool.close()
        pool.give_back(connection)
        assert not connection.usable


async def test_the_certificate_is_checked_against_the_name(tmp_path: Path) -> None:
    certificate, key = await self_signed(tmp_path, "provider.example")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=certificate)
    async with serving(OK, tls) as server:
        assert await fetched(pool_of(server.port, trusting, "provider.example")) == b"hello"
        with pytest.raises(NotSent, match="certificate is not accepted: Hostname mismatch"):
            await pool_of(server.port, trusting, "other.example").take()
        with pytest.raises(NotSent, match="certificate is not accepted: self-signed certificate"):
            await pool_of(server.port, ssl.create_default_context(), "provider.example").take()
    async with serving(OK) as plain:
        with pytest.raises(NotSent, match="can't connect"):
            await pool_of(plain.port, trusting, "provider.example").take()


async def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / "tls.crt", folder / "tls.key"
    making = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
        *("-days", "2", "-keyout", str(key), "-out", str(certificate)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await making.wait() == 0
    return certificate, key


async def test_silence_after_a_pause_of_ours_ends_too() -> None:
    """While nobody reads there is no silence of the provider's; afterwards there is again."""

    async def much_and_no_more(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n" + b"x" * 2_000_000)
        await writer.drain()
        await asyncio.sleep(5)

    async with serving(much_and_no_more) as server:
        connection = await begun(pool_of(server.port), idle=0.2, total=60)
        await asyncio.sleep(0.5)
        async with asyncio.timeout(5):
            with pytest.raises(Doubtful, match="nothing came for"):
                await rest(connection)


async def test_trailers_without_end_are_given_up() -> None:
    async def trailing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED[:-2] + b"x: ")
        while True:
            writer.write(b"y" * 10_000)
            await writer.drain()
            await asyncio.sleep(0.001)

    async with serving(trailing) as server:
        async with asyncio.timeout(5):
            with pytest.raises(Doubtful, match="headers have more than"):
                await fetched(pool_of(server.port), total=60.0)
