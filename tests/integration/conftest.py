"""A gateway process and a provider simulator, without an operator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.canary import assert_nowhere, sweep, take_down
from tests.support.gateway_process import (
    KEY,
    PROMPT,
    USD,
    GatewayProcess,
    Simulator,
    account,
    config,
    provider,
    rows,
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
    cluster: Cluster,
    kubeconfig: Path,
    namespace: str,
    tmp_path: Path,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[GatewayProcess]:
    """A gateway with one budget of 1 USD. Afterwards nobody but the provider has seen the key, and
    no prompt is left anywhere."""
    taken = take_down(monkeypatch)
    process = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    await process.prepare()
    await process.configure(
        config(namespace, (account(namespace, USD),), (provider("sim", simulator.port),))
    )
    process.start()
    await process.ready()
    yield process
    await process.scrape()
    assert process.stop() == 0
    answered = taken.get(process.port, bytearray())
    for secret in (KEY, PROMPT):
        assert_nowhere(secret, "an answer", answered)
        sweep(secret, tmp_path, [tmp_path / "keys", tmp_path / "sim-key"])
    entries = [str(entry) for entry in await rows(process)]
    assert_nowhere(PROMPT, "the ledger", "\n".join(entries).encode())
