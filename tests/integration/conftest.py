"""A gateway process and a provider simulator, without an operator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.gateway_process import (
    KEY,
    USD,
    GatewayProcess,
    Simulator,
    account,
    config,
    provider,
)

from llmbudget.clients.cluster import Cluster


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    process = Simulator(tmp_path)
    await process.ready()
    yield process
    process.stop()


@pytest.fixture
async def gateway(
    cluster: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path, simulator: Simulator
) -> AsyncIterator[GatewayProcess]:
    """A gateway with one budget of 1 USD; afterwards nobody but the provider has seen the key."""
    process = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    await process.prepare()
    await process.configure(
        config(namespace, (account(namespace, USD),), (provider("sim", simulator.port),))
    )
    process.start()
    await process.ready()
    yield process
    assert process.stop() == 0
    written = process.log.read_bytes() + (tmp_path / "ledger" / "ledger.db").read_bytes()
    assert KEY.encode() not in written
    assert b"canary prompt" not in written
