"""Tokens verified by the cluster's keys: what passes, and what never does."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.connection import Connection
from llmbudget.gateway.offline import RETRY_SECONDS, OfflineIdentities
from llmbudget.gateway.protocols.errors import Refusal

ISSUER = "https://kubernetes.default.svc.cluster.local"
SIGNER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NEXT = ec.generate_private_key(ec.SECP256R1())


class Keys(Cluster):
    """The cluster's discovery, with keys that may be rotated, or away."""

    def __init__(self) -> None:
        super().__init__(Connection.in_cluster(Path("/nowhere")))
        self.keys = {"one": (SIGNER, "RS256")}
        self.away = False
        self.asked = 0

    async def signing_keys(self) -> tuple[str, list[dict[str, Any]]]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise ApiError(0, "Timeout", "the API server did not answer in time")
        found = []
        for kid, (key, algorithm) in self.keys.items():
            document = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key())
            jwk = json.loads(document) if isinstance(document, str) else document
            found.append({**jwk, "kid": kid, "use": "sig", "alg": algorithm})
        return ISSUER, found


class Clock:
    def __init__(self) -> None:
        self.steady = 1000.0

    def __call__(self) -> float:
        return self.steady


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identities(keys: Keys, clock: Clock) -> OfflineIdentities:
    return OfflineIdentities(keys, "llmbudget", clock)


def token(key: Any = SIGNER, kid: str = "one", algorithm: str = "RS256", **claims: Any) -> str:
    now = int(time.time())
    body = {
        "iss": ISSUER,
        "aud": ["llmbudget"],
        "sub": "system:serviceaccount:team-a:researcher",
        "iat": now,
        "nbf": now,
        "exp": now + 86_400,
    }
    made = {name: value for name, value in (body | claims).items() if value is not None}
    return jwt.encode(made, key, algorithm, headers={"kid": kid})


async def test_a_valid_token_names_its_service_account(identities: OfflineIdentities) -> None:
    found = await identities.identify(token(), "10.0.0.1")
    assert found.service_account == ("team-a", "researcher")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (token(aud=["another"]), "audience llmbudget"),
        (token(aud=None), "claims"),
        (token(iss="https://elsewhere.example"), "claims"),
        (token(exp=1), "expired"),
        (token(exp=None), "claims"),
        (token(sub=None), "claims"),
        (token(nbf=int(time.time()) + 86_000), "claims"),
        (token(STRANGER), "signature"),
        (token(STRANGER, kid="other"), "none of this cluster's"),
        ("made-up", "no token"),
        (jwt.encode({"sub": "x"}, "s" * 64, "HS256", headers={"kid": "one"}), "signature"),
        (jwt.encode({"sub": "x"}, None, "none", headers={"kid": "one"}), "signature"),
    ],
)
async def test_what_is_refused(identities: OfflineIdentities, bad: str, says: str) -> None:
    with pytest.raises(Refusal, match=says) as refused:
        await identities.identify(bad, "10.0.0.1")
    assert refused.value.status == 401
    assert bad not in refused.value.message


async def test_an_api_server_that_is_away_stops_nothing_once_its_keys_are_known(
    identities: OfflineIdentities, keys: Keys, clock: Clock
) -> None:
    keys.away = True
    with pytest.raises(Refusal) as refused:
        await identities.identify(token(), "10.0.0.1")
    assert refused.value.status == 503
    keys.away = False
    clock.steady += 11
    await identities.identify(token(), "10.0.0.1")
    keys.away = True
    clock.steady += 3600
    await identities.identify(token(sub="system:serviceaccount:b:c"), "10.0.0.1")


async def test_rotated_keys_are_found_and_forged_ones_do_not_flood(
    identities: OfflineIdentities, keys: Keys, clock: Clock
) -> None:
    await identities.identify(token(), "10.0.0.1")
    assert keys.asked == 1
    clock.steady += 11
    for number in range(50):
        with pytest.raises(Refusal):
            await identities.identify(token(STRANGER, kid=f"forged-{number}"), "10.0.0.1")
    assert keys.asked == 2
    keys.keys["two"] = (NEXT, "ES256")
    clock.steady += 11
    found = await identities.identify(token(NEXT, "two", "ES256"), "10.0.0.1")
    assert found.service_account == ("team-a", "researcher")
    del keys.keys["one"]


@pytest.mark.parametrize("away", [False, True], ids=["while keys are read", "while there are none"])
async def test_a_flood_of_unknown_keys_asks_once(
    identities: OfflineIdentities, keys: Keys, clock: Clock, away: bool
) -> None:
    """Whether the API server answers or not, and though no key has ever been read."""
    keys.away = away
    for turn in range(1, 4):
        flood = (
            identities.identify(token(STRANGER, kid=f"forged-{turn}-{number}"), "10.0.0.1")
            for number in range(50)
        )
        answers = await asyncio.gather(*flood, return_exceptions=True)
        status = 503 if away else 401
        assert {isinstance(each, Refusal) and each.status for each in answers} == {status}
        assert keys.asked == turn
        clock.steady += RETRY_SECONDS + 1
