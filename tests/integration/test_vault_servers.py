"""A gateway whose provider's key is in a real server of Vault's API, by AppRole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.canary import take_down
from tests.support.gateway_process import (
    KEY,
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    post,
    provider,
    rows,
)
from tests.support.vault_servers import AppRole, VaultServer, named, rusty_vault
from tests.support.watched import watched

from llmbudget.api.credentials import VaultAuthMethod
from llmbudget.clients.cluster import Cluster
from llmbudget.contract.config import ProviderConfig, VaultConfig
from llmbudget.ledger.interface import Outcome

# RustyVault is built where it is not in the cache yet.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

ROTATED = "sk-rotated-5a4b3c2d1e0f98877665544a"
TOKEN_SECONDS = 6
"""The lease of a login, of which a gateway uses two thirds."""


@dataclass
class Stored:
    """Where the key is."""

    server: VaultServer
    mount: str
    kv_version: int
    role: AppRole

    def write(self, key: str, **more: str) -> None:
        entries = {"api_key": key, "allowed_host": "127.0.0.1", **more}
        if self.kv_version == 2:
            self.server.request("POST", f"{self.mount}/data/llm", {"data": entries})
        else:
            self.server.request("POST", f"{self.mount}/llm", entries)

    def provider(self, port: int, ttl_ms: int = 300_000) -> ProviderConfig:
        vault = VaultConfig(
            address=self.server.address,
            allow_private=True,
            ca_bundle=False,
            auth_method=VaultAuthMethod.APP_ROLE,
            auth_path=self.role.auth_path,
            mount=self.mount,
            kv_version=self.kv_version,
            path="llm",
            key="api_key",
            ttl_ms=ttl_ms,
        )
        return provider("sim", port, vault=vault)


@pytest.fixture(scope="session")
def rusty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    with rusty_vault(tmp_path_factory.mktemp("rusty-vault")) as server:
        yield server


@pytest.fixture(params=["RustyVault, KV 1", "VAULT_ADDR, KV 1", "VAULT_ADDR, KV 2"])
def stored(request: pytest.FixtureRequest) -> Iterator[Stored]:
    which, _, version = request.param.partition(", KV ")
    server = named() if which == "VAULT_ADDR" else request.getfixturevalue("rusty")
    with ExitStack() as stack:
        mount = stack.enter_context(server.engine(int(version)))
        path = f"{mount}/data/llm" if version == "2" else f"{mount}/llm"
        role = stack.enter_context(server.app_role(path, TOKEN_SECONDS))
        made = Stored(server, mount, int(version), role)
        made.write(KEY)
        yield made


@pytest.fixture
async def gateway(
    cluster: Cluster,
    kubeconfig: Path,
    namespace: str,
    tmp_path: Path,
    simulator: Simulator,
    stored: Stored,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[GatewayProcess]:
    taken = take_down(monkeypatch)
    process = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    await process.prepare()
    folder = tmp_path / "vault" / "sim"
    folder.mkdir()
    (folder / "role_id").write_text(stored.role.role_id + "\n")
    (folder / "secret_id").write_text(stored.role.secret_id)
    mine = (account(namespace, USD),)
    await process.configure(config(namespace, mine, (stored.provider(simulator.port),)))
    secrets = [KEY, ROTATED, stored.role.secret_id]
    async with watched(process, taken, secrets, [tmp_path / "sim-key", folder]):
        yield process


async def reconfigure(process: GatewayProcess, provider: ProviderConfig) -> None:
    mine = (account(process.namespace, USD),)
    await process.configure(config(process.namespace, mine, (provider,), generation=2))
    while '"generation": 2' not in process.log.read_text():
        await asyncio.sleep(0.05)


async def test_a_key_that_is_rotated_costs_one_charge(
    gateway: GatewayProcess, simulator: Simulator, stored: Stored, tmp_path: Path
) -> None:
    token = await gateway.token()
    assert (await post(gateway, body(), token)).status_code == 200
    stored.write(ROTATED)
    (tmp_path / "sim-key").write_text(ROTATED)
    answers = await asyncio.gather(*(post(gateway, body(), token) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5, answers[0].text
    found = await rows(gateway)
    assert [row.outcome for row in found].count(Outcome.METERED) == 6
    assert sum(row.cost for row in found) == (await simulator.bill())["nano"]


async def test_a_key_is_served_beyond_the_lease_of_the_login_that_read_it(
    gateway: GatewayProcess, simulator: Simulator, stored: Stored, tmp_path: Path
) -> None:
    """The key's time is longer than the token's: by its end the gateway has renewed the token, or
    logged in anew where the server renews none, as RustyVault."""
    await reconfigure(gateway, stored.provider(simulator.port, ttl_ms=1500))
    token = await gateway.token()
    assert (await post(gateway, body(), token)).status_code == 200
    for _ in range(5):
        await asyncio.sleep(TOKEN_SECONDS / 3)
        assert (await post(gateway, body(), token)).status_code == 200
    # Not from memory alone: a new key is taken over without anybody's refusing the old one.
    stored.write(ROTATED)
    await asyncio.sleep(1.6)
    (tmp_path / "sim-key").write_text(ROTATED)
    assert (await post(gateway, body(), token)).status_code == 200
    assert (await simulator.bill())["refused"] == 0
    assert "key not read" not in gateway.log.read_text()


async def test_the_lease_that_a_secret_states_bounds_its_use(
    gateway: GatewayProcess, simulator: Simulator, stored: Stored
) -> None:
    """KV version 1 tells a secret's `ttl` as its lease; version 2 has none."""
    if stored.kv_version == 2:
        pytest.skip("secrets of KV version 2 have no lease")
    stored.write(KEY, ttl="2s")
    await reconfigure(gateway, stored.provider(simulator.port, ttl_ms=299_000))
    token = await gateway.token()
    assert (await post(gateway, body(), token)).status_code == 200
    stored.server.request("DELETE", f"{stored.mount}/llm")
    await asyncio.sleep(2.5)
    sent = (await simulator.bill())["requests"]
    answer = await post(gateway, body(), token)
    assert answer.status_code == 503, answer.text
    assert (await simulator.bill())["requests"] == sent
