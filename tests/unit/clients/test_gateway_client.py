"""The operator finds pods by one name and checks their certificate by another; whatever they send,
it keeps little."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmbudget.clients.gateway import LONGEST_LINE, GatewayClient, GatewayError
from llmbudget.reconcile.x509 import Authority

SERVICE = "team-a-gateway.llm-platform.svc"
ANSWER = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
EVENTS = (
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n"
    b'event: ledger\ndata: {"problem": "away"}\n\n'
)


@pytest.fixture
def authority() -> Authority:
    return Authority.make(datetime.now(UTC), timedelta(days=2))


@pytest.fixture
async def port(authority: Authority, tmp_path: Path) -> AsyncIterator[int]:
    """A pod that proves to be the Service's."""
    pair = authority.issue([SERVICE], datetime.now(UTC), timedelta(days=1))
    (tmp_path / "tls.pem").write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS if request.startswith(b"GET") else ANSWER)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def token() -> str:
    return "token"


async def test_a_pod_is_checked_by_its_services_name(authority: Authority, port: int) -> None:
    ca = authority.pair.certificate.decode()
    client = GatewayClient(f"https://127.0.0.1:{port}", token, ca, name=SERVICE)
    await client.acknowledge("1")
    assert (await anext(client.events())).problem == "away"
    await client.close()


async def test_a_pod_of_another_service_is_told_nothing(authority: Authority, port: int) -> None:
    ca = authority.pair.certificate.decode()
    for name in (None, "team-b-gateway.llm-platform.svc"):
        client = GatewayClient(f"https://127.0.0.1:{port}", token, ca, name=name)
        with pytest.raises(GatewayError, match="CertificateError"):
            await client.acknowledge("1")
        await client.close()


MUCH = 8 * 1024 * 1024
HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"


@asynccontextmanager
async def talkative(answer: bytes) -> AsyncIterator[GatewayClient]:
    """Follow a gateway that says something and goes on with much more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            writer.write(answer)
            for _ in range(MUCH // 65536):
                writer.write(b"x" * 65536)
                await writer.drain()
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = GatewayClient(f"http://127.0.0.1:{port}", token)
        tracemalloc.start()
        try:
            yield client
            _, most = tracemalloc.get_traced_memory()
            assert most < MUCH // 4
        finally:
            tracemalloc.stop()
            await client.close()


@pytest.mark.parametrize("begun", [b"", b"event: ledger\ndata: ", b": "])
async def test_a_line_without_an_end_is_not_kept(begun: bytes) -> None:
    async with talkative(HEAD + b"\r\n" + begun) as client:
        with pytest.raises(GatewayError, match=f"more than {LONGEST_LINE} bytes"):
            await anext(client.events())


async def test_what_a_gateway_says_to_an_acknowledgement_is_not_kept() -> None:
    async with talkative(HEAD + f"content-length: {MUCH}\r\n\r\n".encode()) as client:
        await client.acknowledge("1")


async def test_lines_may_come_in_pieces() -> None:
    events = b'event: ledger\r\ndata: {"problem": "away"}\r\n\r\n: heartbeat\n\n'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"\r\n")
        for number in range(len(events)):
            writer.write(events[number : number + 1])
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = GatewayClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", token)
        assert [event.problem async for event in client.events()] == ["away"]
        await client.close()
