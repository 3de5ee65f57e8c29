"""The operator finds pods by one name and checks their certificate by another."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmbudget.clients.gateway import GatewayClient, GatewayError
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
        with pytest.raises(GatewayError, match="ConnectError"):
            await client.acknowledge("1")
        await client.close()
