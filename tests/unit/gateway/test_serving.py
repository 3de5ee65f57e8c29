"""The certificate is renewed while calls and streams run: none is cut, none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from llmbudget.gateway import serving
from llmbudget.gateway.serving import CertificateUnusable, Server, renew
from llmbudget.local.process import free_port
from llmbudget.local.volumes import swap
from llmbudget.reconcile.x509 import Authority
from llmbudget.render.certificate import Pair

DAY = timedelta(days=1)
AUTHORITY = Authority.make(datetime.now(UTC), 100 * DAY)


class Application:
    """Answers at once, and on /stream bit by bit until it is told to end."""

    def __init__(self) -> None:
        self.end = asyncio.Event()

    async def __call__(self, exchange: Any) -> None:
        if exchange.path == "/stream":
            transport = exchange.response_stream(200, [])
            while not self.end.is_set():
                await transport.send_bytes(b"piece\n")
                await asyncio.sleep(0.02)
            await transport.send_bytes(b"last\n")
        else:
            exchange.response_bytes(200, [], b"hello")


@dataclass
class Running:
    application: Application
    port: int
    folder: Path

    def show(self, pair: Pair) -> None:
        """Swap the volume as the kubelet does."""
        swap(self.folder, {"tls.crt": pair.certificate, "tls.key": pair.key})

    async def shown(self) -> int:
        """Read the serial number of the certificate that a new connection is shown."""
        context = ssl.create_default_context(cadata=AUTHORITY.pair.certificate.decode())
        _, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname="localhost"
        )
        found = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.close()
        return x509.load_der_x509_certificate(found).serial_number

    async def until_shown(self, pair: Pair) -> None:
        async with asyncio.timeout(20):
            while await self.shown() != serial(pair):
                await asyncio.sleep(0.05)

    def client(self) -> httpx.AsyncClient:
        context = ssl.create_default_context(cadata=AUTHORITY.pair.certificate.decode())
        url = f"https://localhost:{self.port}"
        return httpx.AsyncClient(base_url=url, verify=context, trust_env=False, timeout=20)


def issued() -> Pair:
    return AUTHORITY.issue(["localhost"], datetime.now(UTC), 30 * DAY)


def serial(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair.certificate).serial_number


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(serving, "CHECK_SECONDS", 0.05)
    made = Running(Application(), free_port(), tmp_path / "tls")
    made.show(issued())
    acceptor = Server(made.application, "127.0.0.1", made.port, made.folder)
    tasks = [asyncio.create_task(acceptor.serve())]
    tasks.append(asyncio.create_task(renew(acceptor, made.folder)))
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(OSError):
                await made.shown()
                break
            await asyncio.sleep(0.02)
    yield made
    made.application.end.set()
    acceptor.stop()
    async with asyncio.timeout(10):
        await tasks[0]
    tasks[1].cancel()


async def test_a_stream_goes_on_while_the_certificate_is_renewed(running: Running) -> None:
    async with running.client() as client, client.stream("GET", "/stream") as answer:
        pieces = answer.aiter_lines()
        assert await anext(pieces) == "piece"
        pair = issued()
        running.show(pair)
        await running.until_shown(pair)
        running.application.end.set()
        assert [line async for line in pieces][-1] == "last"


async def test_no_call_is_lost_while_the_certificate_is_renewed(running: Running) -> None:
    enough = asyncio.Event()
    answered: list[int] = []

    async def call(client: httpx.AsyncClient) -> None:
        while not enough.is_set():
            # A connection a call: each shakes hands by itself.
            answer = await client.get("/", headers={"connection": "close"})
            answered.append(answer.status_code)

    async with running.client() as client, asyncio.TaskGroup() as callers:
        for _ in range(4):
            callers.create_task(call(client))
        for _ in range(3):
            pair = issued()
            running.show(pair)
            await running.until_shown(pair)
            more = len(answered) + 8
            while len(answered) < more:
                await asyncio.sleep(0.01)
        enough.set()
    assert set(answered) == {200}


async def test_a_pair_that_is_none_changes_nothing(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    before = await running.shown()
    running.show(Pair(issued().certificate, issued().key))
    async with asyncio.timeout(10):
        while "certificate refused" not in caplog.text:
            await asyncio.sleep(0.05)
    assert await running.shown() == before
    pair = issued()
    running.show(pair)
    await running.until_shown(pair)


def test_what_can_not_be_served_with_is_told_at_the_start(tmp_path: Path) -> None:
    application: Any = Application()
    with pytest.raises(CertificateUnusable, match=r"lacks tls.crt or tls.key"):
        Server(application, "127.0.0.1", 1, tmp_path)
    (tmp_path / "tls.crt").write_bytes(issued().certificate)
    (tmp_path / "tls.key").write_bytes(issued().key)
    with pytest.raises(CertificateUnusable, match="no certificate with its key"):
        Server(application, "127.0.0.1", 1, tmp_path)
