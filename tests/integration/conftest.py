"""A gateway process, without an operator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.canary import take_down
from tests.support.gateway_process import (
    KEY,
    USD,
    GatewayProcess,
    Simulator,
    account,
    config,
    provider,
)
from tests.support.watched import watched

from llmbudget.clients.cluster import Cluster


@pytest.fixture
def tls() -> Path | None:
    """Folder for the gateway's certificate; None: it serves plain HTTP."""
    return None


@pytest.fixture
async def gateway(
    cluster: Cluster,
    kubeconfig: Path,
    namespace: str,
    tmp_path: Path,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    tls: Path | None,
) -> AsyncIterator[GatewayProcess]:
    """A gateway with one budget of 1 USD. Afterwards nobody but the provider has seen the key, and
    no prompt is left anywhere."""
    taken = take_down(monkeypatch)
    process = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    if tls is not None:
        monkeypatch.setenv("SSL_CERT_FILE", str(process.serve_tls(tls)))
    await process.prepare()
    await process.configure(
        config(namespace, (account(namespace, USD),), (provider("sim", simulator.port),))
    )
    async with watched(process, taken, [KEY], [tmp_path / "keys", tmp_path / "sim-key"]):
        yield process
