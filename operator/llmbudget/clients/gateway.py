"""A gateway's event stream, as the operator reads it.

The token is made for this one gateway (its audience names the budget), so that no gateway can
replay it at another or at the API server. Nothing that a gateway sends is kept before its size is
known: a broken one must not take the memory of all others' operator.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import aiohttp
import certifi
from pydantic import ValidationError

from llmbudget.contract.events import (
    ACTIONS_PATH,
    BALANCES_PATH,
    HEARTBEAT_SECONDS,
    ActionEvent,
    AvailabilityEvent,
    BalanceEvent,
    EventName,
    KeysEvent,
    SnapshotEvent,
    StreamEvent,
)

Token = Callable[[], Awaitable[str]]

_MODELS: Final[dict[bytes, type[StreamEvent]]] = {
    EventName.BALANCE.encode(): BalanceEvent,
    EventName.ACTION.encode(): ActionEvent,
    EventName.KEYS.encode(): KeysEvent,
    EventName.LEDGER.encode(): AvailabilityEvent,
    EventName.SNAPSHOT.encode(): SnapshotEvent,
}
LONGEST_LINE: Final = 64 * 1024
"""Bytes: the keys that a gateway lacks, each with its reason, take the most."""
_LIMITS: Final = aiohttp.ClientTimeout(
    total=None, sock_connect=5.0, sock_read=3.0 * HEARTBEAT_SECONDS
)


@lru_cache(maxsize=64)
def _trust(ca: str | None) -> ssl.SSLContext:
    """Make a context once, not once a gateway: reading the public authorities takes 20 ms."""
    return ssl.create_default_context(cafile=None if ca else certifi.where(), cadata=ca)


class GatewayError(Exception):
    """The gateway can't be reached, or refuses; the message says which."""


class Sessions:
    """What all clients have in common: thousands of gateways are followed by one session."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def opened(self) -> aiohttp.ClientSession:
        """Begin with the first request. Ambient proxies must not see the token, and no gateway sets
        another's cookies."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Each connection serves one request, each gateway keeps one, and pods move.
                connector=aiohttp.TCPConnector(limit=0, force_close=True, use_dns_cache=False),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=_LIMITS,
            )
        return self._session

    async def close(self) -> None:
        """Let go of all connections."""
        if self._session is not None:
            await self._session.close()


class GatewayClient:
    """One gateway's ledger API."""

    def __init__(
        self,
        url: str,
        token: Token,
        ca: str | None = None,
        *,
        name: str | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        """Connect by `ca`, authorities in PEM; None: the public ones. `name` is what the
        certificate must be for; None: the URL's host. `sessions` is shared with other clients, and
        closed by its owner; None: its own."""
        self._url = url.rstrip("/")
        self._name = name
        self._token = token
        self._trust = _trust(ca)
        self._sessions = sessions or Sessions()
        self._owned = sessions is None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._owned:
            await self._sessions.close()

    async def events(self) -> AsyncIterator[StreamEvent]:
        """Follow the stream until it ends or falls silent.

        Raises:
            GatewayError.
        """
        try:
            async with self._answer("GET", BALANCES_PATH) as answer:
                model: type[StreamEvent] | None = None
                async for line in _lines(answer.content.iter_any()):
                    if line.startswith(b"event:"):
                        model = _MODELS.get(line[6:].strip())
                    elif line.startswith(b"data:") and model is not None:
                        yield model.model_validate_json(line[5:])
        except ValidationError:
            raise GatewayError("the gateway speaks another version of the protocol") from None

    async def acknowledge(self, action_id: str) -> None:
        """Mark an action as done.

        Raises:
            GatewayError.
        """
        async with self._answer("POST", f"{ACTIONS_PATH}/{quote(action_id, safe='')}/ack"):
            pass  # What else it says is not read.

    @asynccontextmanager
    async def _answer(self, method: str, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and hand out its answer's beginning.

        Raises:
            GatewayError: there is none, or it is no success, or it breaks off.
        """
        # Nothing packed, which might be much more than it seems.
        headers = {"authorization": f"Bearer {await self._token()}", "accept-encoding": "identity"}
        try:
            answer = await self._sessions.opened().request(
                method,
                self._url + path,
                headers=headers,
                ssl=self._trust,
                server_hostname=self._name,
                allow_redirects=False,
            )
            try:
                if answer.status != 200:
                    raise GatewayError(f"the gateway answers with status {answer.status}")
                yield answer
            finally:
                answer.close()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise GatewayError(f"the gateway can't be reached: {type(error).__name__}") from None


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split a stream into lines.

    Raises:
        GatewayError: one is too long.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if max(map(len, (*lines, rest))) > LONGEST_LINE:
            raise GatewayError(f"the gateway sends a line of more than {LONGEST_LINE} bytes")
        for line in lines:
            yield line
