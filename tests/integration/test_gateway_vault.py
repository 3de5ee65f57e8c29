"""A gateway whose provider's key is in Vault, by Kubernetes auth and KV version 2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.support.canary import assert_nowhere, take_down
from tests.support.gateway_process import (
    KEY,
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    events,
    post,
    provider,
    rows,
)
from tests.support.vault_peer import Role, VaultPeer
from tests.support.watched import watched

from llmbudget.api.credentials import VaultAuthMethod
from llmbudget.clients.cluster import Cluster
from llmbudget.contract.config import ProviderConfig, VaultConfig
from llmbudget.ledger.interface import Outcome

pytestmark = pytest.mark.cluster

ROTATED = "sk-rotated-0b1c2d3e4f5a69788796a5b4"
PATH = "llm/openrouter"
READ = f"GET /v1/secret/data/{PATH}"
GENERATIONS = count(2)
LOGIN = "POST /v1/auth/kubernetes/login"


@pytest.fixture
async def vault(cluster: Cluster, namespace: str) -> AsyncIterator[VaultPeer]:
    """Vault, which asks the real API server whose tokens it is shown."""
    peer = VaultPeer(cluster.review_token)
    await peer.start()
    reads = (f"secret/data/{PATH}",)
    peer.roles["gateway"] = Role(namespace, "team-a-gateway", peer.address, reads)
    peer.put(PATH, api_key=KEY, allowed_host="127.0.0.1")
    yield peer
    await peer.stop()
    assert peer.faults == []


def vaulted(simulator: Simulator, vault: VaultPeer, **changes: Any) -> ProviderConfig:
    """The simulator as a provider whose key is in Vault."""
    values: dict[str, Any] = {
        "address": vault.address,
        "allow_private": True,
        "ca_bundle": False,
        "auth_method": VaultAuthMethod.KUBERNETES,
        "auth_path": "kubernetes",
        "role": "gateway",
        "mount": "secret",
        "kv_version": 2,
        "path": PATH,
        "key": "api_key",
        "ttl_ms": 300_000,
    }
    return provider("sim", simulator.port, vault=VaultConfig(**(values | changes)))


@pytest.fixture
async def gateway(
    cluster: Cluster,
    kubeconfig: Path,
    namespace: str,
    tmp_path: Path,
    simulator: Simulator,
    vault: VaultPeer,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[GatewayProcess]:
    """A gateway that has no file with a key."""
    taken = take_down(monkeypatch)
    process = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    await process.prepare()
    await log_in_for(process, vault.address)
    mine = (account(namespace, USD),)
    await process.configure(config(namespace, mine, (vaulted(simulator, vault),)))
    async with watched(process, taken, [KEY, ROTATED], [tmp_path / "sim-key"]):
        yield process


async def log_in_for(process: GatewayProcess, audience: str) -> None:
    """Bring the token that the kubelet would bring."""
    folder = process.folder / "vault" / "sim"
    folder.mkdir(exist_ok=True)
    token = await process.token("team-a-gateway", audience)
    (folder / "token").write_text(token)


async def reconfigure(
    process: GatewayProcess, simulator: Simulator, vault: VaultPeer, **changes: Any
) -> None:
    mine = (account(process.namespace, USD),)
    providers = (vaulted(simulator, vault, **changes),)
    generation = next(GENERATIONS)
    await process.configure(config(process.namespace, mine, providers, generation))
    while f'"generation": {generation}' not in process.log.read_text():
        await asyncio.sleep(0.05)


NOT_READ = "has not been read yet"


async def problem(process: GatewayProcess) -> str:
    """Ask the gateway, as the operator does, why it lacks the key."""
    token = await process.operators_token()
    async for event, data in events(process, token):
        # What Vault says comes a moment after the configuration.
        if event == "keys" and NOT_READ not in data["reasons"].get("sim", NOT_READ):
            return str(data["reasons"]["sim"])
    raise AssertionError("the stream ended")


async def rotate(simulator: Simulator, vault: VaultPeer, tmp_path: Path) -> None:
    """Rotate as platforms do: the new key is in Vault when the old one ends."""
    vault.put(PATH, api_key=ROTATED, allowed_host="127.0.0.1")
    (tmp_path / "sim-key").write_text(ROTATED)


async def test_a_call_is_served_with_a_key_that_is_nowhere_but_in_memory(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer
) -> None:
    answers = [await post(gateway, body()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
    assert (await simulator.bill())["calls"] == 3
    assert (vault.count(LOGIN), vault.count(READ)) == (1, 1)
    assert gateway.process is not None
    told = Path(f"/proc/{gateway.process.pid}")
    for where in ("environ", "cmdline"):
        assert_nowhere(KEY, where, (told / where).read_bytes())


async def test_a_rotation_costs_one_refetch_and_each_call_one_charge(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer, tmp_path: Path
) -> None:
    token = await gateway.token()
    assert (await post(gateway, body(), token)).status_code == 200
    await rotate(simulator, vault, tmp_path)
    answers = await asyncio.gather(*(post(gateway, body(), token) for _ in range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20, answers[0].text
    assert vault.count(READ) == 2
    bill = await simulator.bill()
    assert bill["calls"] == 21
    assert 1 <= bill["refused"] <= 20
    found = await rows(gateway)
    assert [row.outcome for row in found].count(Outcome.METERED) == 21
    refused = [row for row in found if row.outcome is not Outcome.METERED]
    assert {(row.outcome, row.cost) for row in refused} == {(Outcome.RELEASED, 0)}


async def test_a_stream_outlives_a_rotation_before_its_first_byte(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer, tmp_path: Path
) -> None:
    await rotate(simulator, vault, tmp_path)
    answer = await post(gateway, body(stream=True))
    assert answer.status_code == 200
    assert "[DONE]" in answer.text
    assert (await simulator.bill())["calls"] == 1


async def test_a_key_that_is_wrong_in_vault_too_is_not_asked_for_with_every_call(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer, tmp_path: Path
) -> None:
    (tmp_path / "sim-key").write_text(ROTATED)
    token = await gateway.token()
    answers = await asyncio.gather(*(post(gateway, body(), token) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {502}
    assert "status 401" in answers[0].text
    assert 2 <= vault.count(READ) < 10
    assert sum(row.cost for row in await rows(gateway)) == 0


async def test_while_vault_is_away_a_key_is_used_for_its_time_and_then_nothing_is_sent(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer
) -> None:
    await reconfigure(gateway, simulator, vault, ttl_ms=6000)
    token = await gateway.token()
    assert (await post(gateway, body(), token)).status_code == 200
    await vault.stop()
    assert (await post(gateway, body(), token)).status_code == 200
    await asyncio.sleep(6.5)
    sent = (await simulator.bill())["requests"]
    answer = await post(gateway, body(), token)
    assert answer.status_code == 503, answer.text
    assert "no key for provider sim" in answer.json()["error"]["message"]
    assert (await simulator.bill())["requests"] == sent
    assert "can't connect" in await problem(gateway)
    await vault.start()
    await asyncio.sleep(1.1)
    assert (await post(gateway, body(), token)).status_code == 200


async def test_a_sealed_vault_is_as_one_that_is_away(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer
) -> None:
    assert (await post(gateway, body())).status_code == 200
    vault.sealed = True
    await reconfigure(gateway, simulator, vault, ttl_ms=299_000)
    assert "sealed" in await problem(gateway)
    assert (await post(gateway, body())).status_code == 503
    vault.sealed = False
    await asyncio.sleep(1.1)
    assert (await post(gateway, body())).status_code == 200


async def test_a_key_that_does_not_consent_is_sent_nowhere(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer
) -> None:
    for entries in ({}, {"allowed_host": "openrouter.ai"}):
        vault.put("other", api_key=KEY, **entries)
        vault.roles["gateway"].reads += ("secret/data/other",)
        await reconfigure(gateway, simulator, vault, path="other")
        answer = await post(gateway, body())
        assert answer.status_code == 503
        assert "add allowed_host=127.0.0.1" in await problem(gateway)
    assert (await simulator.bill())["requests"] == 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such role": ({"role": "unknown"}, "status 400 to POST auth/kubernetes/login"),
    "no such method": ({"auth_path": "elsewhere"}, "status 400 to POST auth/elsewhere/login"),
    "no such secret": ({"path": "llm/none"}, "status 403 to GET secret/data/llm/none"),
    "no such entry": ({"key": "token"}, "has no entry token"),
    "another version": ({"kv_version": 1}, f"status 403 to GET secret/{PATH}"),
    "another namespace": ({"namespace": "team-b"}, "permission is denied"),
    "no private address": ({"allow_private": False}, "needs allowPrivate"),
    "no bundle": ({"ca_bundle": True}, "the CA bundle ca.pem is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_set_up_wrongly_is_named(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer, case: str
) -> None:
    changes, said = REFUSED[case]
    await reconfigure(gateway, simulator, vault, **changes)
    assert said in await problem(gateway)
    assert (await post(gateway, body())).status_code == 503
    assert (await simulator.bill())["requests"] == 0
    vault.faults.clear()


async def test_a_token_for_another_server_is_of_no_use_here(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer
) -> None:
    await log_in_for(gateway, "https://another-vault.example")
    await reconfigure(gateway, simulator, vault, ttl_ms=299_000)
    assert "status 403 to POST auth/kubernetes/login" in await problem(gateway)
    await log_in_for(gateway, vault.address)
    await asyncio.sleep(1.1)
    assert (await post(gateway, body())).status_code == 200


async def test_a_namespace_of_vault(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer
) -> None:
    vault.namespace = "platform/llm"
    await reconfigure(gateway, simulator, vault, namespace="platform/llm")
    assert (await post(gateway, body())).status_code == 200


async def test_a_revoked_token_and_a_secret_that_is_taken_away(
    gateway: GatewayProcess, simulator: Simulator, vault: VaultPeer, tmp_path: Path
) -> None:
    await reconfigure(gateway, simulator, vault, ttl_ms=3000)
    assert (await post(gateway, body())).status_code == 200
    logins = vault.count(LOGIN)
    vault.tokens.clear()
    await rotate(simulator, vault, tmp_path)
    assert (await post(gateway, body())).status_code == 200
    assert vault.count(LOGIN) == logins + 1
    vault.secrets.clear()
    assert "there is nothing" in await problem(gateway)
    assert (await post(gateway, body())).status_code == 503
