"""A server of callers' HTTP, spoken to in raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop

from llmbudget.gateway.callers import Application, CallerConnection
from llmbudget.gateway.incoming import Incoming
from llmbudget.gateway.serving import Server
from llmbudget.gateway.wire import CallerGone
from llmbudget.local.process import free_port
from llmbudget.reconcile.x509 import Authority

HEAD = b"POST /a HTTP/1.1\r\nhost: x\r\n"
PLAIN = HEAD + b"content-length: 5\r\n\r\nhello"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nx-t: 1\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
MEGABYTE = 1024 * 1024


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["std", "uv"])
def both_event_loops(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """The standard library's loop, and the one of a gateway: their transports differ."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@dataclass
class Echo:
    """Answers with what was asked."""

    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    gone: int = 0

    async def __call__(self, exchange: Incoming) -> None:
        try:
            body = b"".join([chunk async for chunk in exchange])
        except CallerGone:
            self.gone += 1
            return
        self.asked.append((exchange.method, exchange.path, body))
        exchange.response_bytes(200, [("x-length", str(len(body)))], body)


@dataclass
class Running:
    """A server, and who calls it."""

    server: Server
    port: int
    trust: ssl.SSLContext | None = None

    @property
    def connections(self) -> list[CallerConnection]:
        return list(self.server._callers._connections)

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not what():
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        name = None if self.trust is None else "localhost"
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.trust, server_hostname=name
        )
        try:
            yield reader, writer
        finally:
            writer.close()

    async def say(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Send, and read all that comes until the connection is closed."""
        async with self.connected() as (reader, writer):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            async with asyncio.timeout(5):
                return await reader.read()


def certificate(folder: Path) -> ssl.SSLContext:
    """Write a certificate and its key into a folder, and trust it."""
    now = datetime.now(UTC)
    authority = Authority.make(now, timedelta(days=2))
    pair = authority.issue(["localhost"], now, timedelta(days=1))
    (folder / "tls.crt").write_bytes(pair.certificate)
    (folder / "tls.key").write_bytes(pair.key)
    return ssl.create_default_context(cadata=authority.pair.certificate.decode())


@contextlib.asynccontextmanager
async def serving(application: Application, tls: Path | None = None) -> AsyncIterator[Running]:
    """Serve, by TLS with a certificate of its own in the folder, or by plain HTTP."""
    trust = None if tls is None else certificate(tls)
    running = Running(Server(application, "127.0.0.1", port := free_port(), tls), port, trust)
    task = asyncio.create_task(running.server.serve())
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(OSError):
                async with running.connected():
                    break
            await asyncio.sleep(0.01)
    try:
        yield running
    finally:
        running.server.stop()
        async with asyncio.timeout(5):
            await task
