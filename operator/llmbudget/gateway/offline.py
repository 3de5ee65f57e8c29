"""Who calls, without asking the API server: tokens verified by the cluster's own signing keys.

The keys come from the cluster's OIDC discovery and are kept, so that calls go on while the API
server is away. What it costs: a deleted pod's token is good until it expires.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import jwt

from llmbudget.clients.cluster import ApiError, Cluster, TokenIdentity
from llmbudget.gateway.identity import digest_of
from llmbudget.gateway.protocols.errors import unavailable, unidentified

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 600.0
"""How old the keys may be before they are read again."""
RETRY_SECONDS: Final = 10.0
"""How soon they may be read again for a token whose key is not among them."""
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
_MOST_CACHED: Final = 20_000


class OfflineIdentities:
    """Verifies tokens for one audience."""

    def __init__(
        self,
        cluster: Cluster,
        audience: str,
        steady: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._audience = audience
        self._steady = steady
        self._wall = wall
        self._issuer = ""
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._known: dict[bytes, tuple[TokenIdentity, float]] = {}

    async def identify(self, token: str, client: str) -> TokenIdentity:
        """Find out whose token it is.

        Raises:
            Refusal: 400, 401 or, where no keys could be read yet, 503.
        """
        digest = digest_of(token)
        known = self._known.get(digest)
        if known is not None and self._wall() < known[1]:
            return known[0]
        claims = self._verified(token, await self._key(token))
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        identity = TokenIdentity(claims["sub"], (), (self._audience,))
        self._known[digest] = (identity, float(claims["exp"]))
        return identity

    async def _key(self, token: str) -> jwt.PyJWK:
        """Find the key that a token names."""
        try:
            wanted = str(jwt.get_unverified_header(token).get("kid", ""))
        except jwt.PyJWTError:
            raise _refused("it is no token") from None
        lasts = REFRESH_SECONDS if wanted in self._keys else RETRY_SECONDS
        due = self._steady() - self._read_at > lasts
        if self._reading is None or (due and self._reading.done()):
            self._reading = asyncio.create_task(self._read())
        if wanted not in self._keys:
            # Shielded: a caller that goes away must not take the others' keys along.
            await asyncio.shield(self._reading)
        if not self._keys:
            raise unavailable("The cluster's signing keys can't be read now.")
        if wanted not in self._keys:
            raise _refused("its key is none of this cluster's")
        return self._keys[wanted]

    async def _read(self) -> None:
        """Read the keys; where that fails, the known ones stay."""
        self._read_at = self._steady()
        try:
            issuer, found = await self._cluster.signing_keys()
            keys = {key["kid"]: jwt.PyJWK(key) for key in found if key.get("use") == "sig"}
        except (ApiError, KeyError, jwt.PyJWTError) as error:
            log.warning("signing keys", extra={"fields": {"why": type(error).__name__}})
            return
        self._issuer, self._keys = issuer, keys

    def _verified(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name] if key.algorithm_name in _ALGORITHMS else [],
                audience=self._audience,
                issuer=self._issuer,
                options={"require": ["exp", "iat", "aud", "iss", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise _refused("it has expired") from None
        except jwt.InvalidAudienceError:
            raise _refused(f"it was not made for the audience {self._audience}") from None
        except jwt.PyJWTError:
            raise _refused("its signature or its claims are wrong") from None
        return claims


def _refused(why: str) -> Exception:
    return unidentified(f"This token is not accepted: {why}.")
