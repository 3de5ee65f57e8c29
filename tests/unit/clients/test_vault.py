"""A token's lease in Vault: renewed in time, replaced where it can't be, not used past its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.support.vault_peer import Role, VaultPeer

from llmbudget.api.credentials import VaultAuthMethod
from llmbudget.clients.cluster import TokenIdentity
from llmbudget.clients.vault import SecretRefused, VaultClient, VaultError
from llmbudget.contract.config import VaultConfig

LOGIN = "POST /v1/auth/kubernetes/login"
RENEWAL = "POST /v1/auth/token/renew-self"
READ = "GET /v1/secret/data/llm"
LEASE = 90.0


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Reader:
    """A client and its server, on one clock."""

    peer: VaultPeer
    clock: Clock
    client: VaultClient
    seen: int = 0

    async def read(self, after: float = 0.0) -> list[str]:
        """Let time pass, read, and tell what the server was asked meanwhile."""
        self.clock.now += after
        secret = await self.client.read()
        assert secret.entries["api_key"] == "the-key"
        return self.asked()

    def asked(self) -> list[str]:
        new, self.seen = self.peer.asked[self.seen :], len(self.peer.asked)
        return new


async def _review(_: str, audience: str | None) -> TokenIdentity | None:
    """The login itself is tried against a real API server, in the integration tests."""
    return TokenIdentity("system:serviceaccount:llm:gateway", (), (audience or "",))


async def _transport() -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport()


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    clock = Clock()
    peer = VaultPeer(_review, clock)
    await peer.start()
    reads = ("secret/data/llm",)
    peer.roles["gateway"] = Role(
        "llm", "gateway", peer.address, reads, ttl=LEASE, max_ttl=4 * LEASE
    )
    peer.put("llm", api_key="the-key")
    (tmp_path / "token").write_text("jwt")
    config = VaultConfig(
        address=peer.address,
        allow_private=True,
        ca_bundle=False,
        auth_method=VaultAuthMethod.KUBERNETES,
        auth_path="kubernetes",
        role="gateway",
        mount="secret",
        kv_version=2,
        path="llm",
        key="api_key",
        ttl_ms=300_000,
    )
    yield Reader(peer, clock, VaultClient(config, tmp_path, _transport, clock))
    await peer.stop()
    assert peer.faults == []


async def test_a_token_is_used_until_two_thirds_of_its_lease_are_over_and_then_renewed(
    reader: Reader,
) -> None:
    assert await reader.read() == [LOGIN, READ]
    assert reader.client.renewal_seconds == pytest.approx(60)
    assert await reader.read(after=59) == [READ]
    assert await reader.read(after=1) == [RENEWAL, READ]
    assert reader.client.renewal_seconds == pytest.approx(60)
    assert await reader.read(after=59) == [READ]


async def test_one_token_lasts_over_many_renewals_as_long_as_its_server_lets_it(
    reader: Reader,
) -> None:
    """Four leases at most: five renewals of a full lease, and then a new login in place of one
    that would end sooner."""
    assert await reader.read() == [LOGIN, READ]
    asked = [await reader.read(after=60) for _ in range(5)]
    assert asked[:4] == [[RENEWAL, READ]] * 4
    assert asked[4] == [RENEWAL, LOGIN, READ]
    assert len(reader.peer.tokens) == 2


async def test_a_token_that_can_not_be_renewed_is_replaced_before_its_end(reader: Reader) -> None:
    reader.peer.roles["gateway"].renewable = False
    assert await reader.read() == [LOGIN, READ]
    assert await reader.read(after=60) == [LOGIN, READ]


async def test_a_lease_that_ended_unnoticed_is_not_renewed(reader: Reader) -> None:
    """A gateway that was stopped for longer has a token that is worth nothing."""
    assert await reader.read() == [LOGIN, READ]
    assert await reader.read(after=LEASE) == [LOGIN, READ]


async def test_where_a_renewal_is_refused_the_gateway_logs_in_again(reader: Reader) -> None:
    assert await reader.read() == [LOGIN, READ]
    reader.peer.tokens.clear()
    assert await reader.read(after=60) == [RENEWAL, LOGIN, READ]


async def test_a_token_revoked_within_its_lease_costs_one_new_login(reader: Reader) -> None:
    assert await reader.read() == [LOGIN, READ]
    reader.peer.tokens.clear()
    assert await reader.read() == [READ, LOGIN, READ]


async def test_a_policy_that_no_longer_allows_costs_one_new_login_and_is_told(
    reader: Reader,
) -> None:
    assert await reader.read() == [LOGIN, READ]
    reader.peer.roles["gateway"].reads = ()
    with pytest.raises(SecretRefused, match="permission is denied"):
        await reader.read()
    assert reader.asked() == [READ, LOGIN, READ]


async def test_while_the_server_is_away_a_token_that_lasts_is_kept(reader: Reader) -> None:
    assert await reader.read() == [LOGIN, READ]
    await reader.peer.stop()
    with pytest.raises(VaultError, match="can't connect"):
        await reader.read(after=60)
    await reader.peer.start()
    assert await reader.read(after=10) == [RENEWAL, READ]
