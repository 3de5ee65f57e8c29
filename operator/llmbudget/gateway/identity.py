"""Who calls: a ServiceAccount token, reviewed by the API server.

A review's answer is kept for at most ten seconds, as long as the API server itself keeps it; a
refusal is not kept. Reviews of one token at one time are one review. An address whose tokens are
refused again and again is held off before it reaches the API server.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from llmbudget.clients.cluster import ApiError, Cluster, TokenIdentity
from llmbudget.gateway.limits import ClientLimits
from llmbudget.gateway.protocols.errors import malformed, unavailable, unidentified

CACHE_SECONDS: Final = 10.0
_MOST_CACHED: Final = 20_000
_MOST_TOKEN_BYTES: Final = 8192
_REFUSED_PER_MINUTE: Final = 60
"""Tokens of one address that may be refused in a minute."""
REVIEW_SECONDS: Final = 10.0

_Digest = bytes
Identify = Callable[[str, str], Awaitable[TokenIdentity]]
"""From a token and its sender's address to its owner; raises a Refusal."""


def digest_of(token: str) -> bytes:
    """Digest what may be a token, so that none has to be kept.

    Raises:
        Refusal: 400, where it can't be one.
    """
    if len(token) > _MOST_TOKEN_BYTES or not token.isascii():
        raise malformed("The token is none of Kubernetes'.")
    return hashlib.blake2b(token.encode(), digest_size=20).digest()


class Identities:
    """Reviews tokens for one audience; None: the API server's own."""

    def __init__(
        self,
        cluster: Cluster,
        audience: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._audience = audience
        self._clock = clock
        self._known: dict[_Digest, tuple[TokenIdentity, float]] = {}
        self._under_way: dict[_Digest, tuple[asyncio.Task[TokenIdentity | None], float]] = {}
        """Reviews, and when they were asked for."""
        self._refused = ClientLimits(_REFUSED_PER_MINUTE, clock)

    async def identify(self, token: str, client: str) -> TokenIdentity:
        """Find out whose token it is.

        Raises:
            Refusal: 400, 401, 429 or, where the API server is away, 503.
        """
        digest = digest_of(token)
        known = self._known.get(digest)
        if known is not None and self._clock() < known[1]:
            return known[0]
        identity = await self._review(digest, token, client)
        if identity is None:
            wanted = f" for the audience {self._audience}" if self._audience else ""
            raise unidentified(
                f"The API server doesn't accept this token{wanted}: it has expired, was made for"
                " another audience, or is none of a ServiceAccount. Read it anew from its file for"
                " each call."
            )
        return identity

    async def _review(self, digest: _Digest, token: str, client: str) -> TokenIdentity | None:
        task, asked = self._under_way.get(digest, (None, 0.0))
        if task is None or self._clock() - asked >= CACHE_SECONDS:
            self._refused.check(client)
            # Counted before the answer is there, or a burst of them would all be asked about.
            self._refused.count(client)
            task = asyncio.create_task(self._ask(digest, token, client))
            self._under_way[digest] = task, self._clock()
            task.add_done_callback(lambda done: self._done(digest, done))
        try:
            # Shielded: a caller that goes away must not take the others' answer along.
            async with asyncio.timeout(REVIEW_SECONDS):
                return await asyncio.shield(task)
        except ApiError as error:
            raise unavailable(
                "This gateway may not have tokens reviewed: its ServiceAccount is not bound to"
                " system:auth-delegator."
                if error.status == 403
                else "The API server can't review tokens now."
            ) from None
        except TimeoutError:
            raise unavailable("The API server can't review tokens now.") from None

    def _done(self, digest: _Digest, task: asyncio.Task[TokenIdentity | None]) -> None:
        if self._under_way.get(digest, (None,))[0] is task:
            del self._under_way[digest]

    async def _ask(self, digest: _Digest, token: str, client: str) -> TokenIdentity | None:
        asked = self._clock()
        try:
            identity = await self._cluster.review_token(token, self._audience)
        except ApiError:
            self._refused.count(client, -1)
            raise
        if identity is not None:
            self._refused.count(client, -1)
            if len(self._known) >= _MOST_CACHED:
                self._forget()
            self._known[digest] = (identity, asked + CACHE_SECONDS)
        return identity

    def _forget(self) -> None:
        """Drop what has expired, or everything where nothing has."""
        now = self._clock()
        self._known = {key: value for key, value in self._known.items() if now < value[1]}
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
