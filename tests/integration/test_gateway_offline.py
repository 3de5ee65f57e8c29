"""Calls while the API server is away: Offline goes on, TokenReview denies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from tests.support.gateway_process import (
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    post,
    provider,
)

from llmbudget.api.budget import IdentityMode
from llmbudget.clients.cluster import Cluster

pytestmark = pytest.mark.cluster


class Wire:
    """The way to the API server, which can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.cut_off = False

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut_off:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, back}
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(_pump(reader, back), _pump(there, writer))

    def cut(self) -> None:
        self.cut_off = True
        for writer in self._writers:
            writer.transport.abort()

    def close(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@pytest.fixture
def api_port(kubeconfig: Path) -> int:
    server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    return int(server.rpartition(":")[2])


@pytest.fixture
async def wire(api_port: int) -> AsyncIterator[Wire]:
    made = Wire(api_port)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("mode", "status"), [(IdentityMode.OFFLINE, 200), (IdentityMode.TOKEN_REVIEW, 503)]
)
async def test_the_api_server_is_away(
    cluster: Cluster,
    kubeconfig: Path,
    namespace: str,
    tmp_path: Path,
    wire: Wire,
    mode: IdentityMode,
    status: int,
) -> None:
    simulator = Simulator(tmp_path)
    gateway = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    try:
        await simulator.ready()
        await gateway.prepare()
        mine = (account(namespace, USD),)
        providers = (provider("sim", simulator.port),)
        await gateway.configure(config(namespace, mine, providers, identity_mode=mode))
        gateway.start({"KUBERNETES_SERVICE_PORT": str(await wire.open())})
        await gateway.ready()
        first, second = await gateway.token(), await gateway.token()
        assert (await post(gateway, body(), first)).status_code == 200
        elsewhere = await gateway.token(audience="another")
        assert (await post(gateway, body(), elsewhere)).status_code == 401
        stranger = await gateway.token("default")
        assert (await post(gateway, body(), stranger)).status_code == 403
        wire.cut()
        # A token that nobody has shown yet: nothing that was known before helps.
        assert (await post(gateway, body(words=5), second)).status_code == status
    finally:
        gateway.stop()
        simulator.stop()
