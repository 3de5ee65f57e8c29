"""A gateway's event stream, as the operator reads it.

The token is made for this one gateway (its audience names the budget), so that no gateway can
replay it at another or at the API server.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import certifi
import httpx
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

_MODELS: Final[dict[str, type[StreamEvent]]] = {
    EventName.BALANCE: BalanceEvent,
    EventName.ACTION: ActionEvent,
    EventName.KEYS: KeysEvent,
    EventName.LEDGER: AvailabilityEvent,
    EventName.SNAPSHOT: SnapshotEvent,
}
_CONNECT_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 3.0 * HEARTBEAT_SECONDS


@lru_cache(maxsize=64)
def _trust(ca: str | None) -> ssl.SSLContext:
    """Make a context once, not once a gateway: reading the public authorities takes 20 ms."""
    return ssl.create_default_context(cafile=None if ca else certifi.where(), cadata=ca)


class GatewayError(Exception):
    """The gateway can't be reached, or refuses; the message says which."""


class GatewayClient:
    """One gateway's ledger API."""

    def __init__(
        self, url: str, token: Token, ca: str | None = None, *, name: str | None = None
    ) -> None:
        """Connect by `ca`, authorities in PEM; None: the public ones. `name` is what the
        certificate must be for; None: the URL's host."""
        self._url = url.rstrip("/")
        self._extensions = {"sni_hostname": name} if name is not None else {}
        self._token = token
        self._client = httpx.AsyncClient(
            # Ambient proxies must not see the token.
            trust_env=False,
            verify=_trust(ca),
            timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS),
        )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def events(self) -> AsyncIterator[StreamEvent]:
        """Follow the stream until it ends or falls silent.

        Raises:
            GatewayError.
        """
        headers = {"authorization": f"Bearer {await self._token()}"}
        try:
            async with self._client.stream(
                "GET", self._url + BALANCES_PATH, headers=headers, extensions=self._extensions
            ) as answer:
                if answer.status_code != 200:
                    raise GatewayError(f"the gateway answers with status {answer.status_code}")
                name = ""
                async for line in answer.aiter_lines():
                    if line.startswith("event:"):
                        name = line[6:].strip()
                    elif line.startswith("data:") and name in _MODELS:
                        yield _MODELS[name].model_validate_json(line[5:])
        except httpx.HTTPError as error:
            raise GatewayError(f"the gateway can't be reached: {type(error).__name__}") from None
        except ValidationError:
            raise GatewayError("the gateway speaks another version of the protocol") from None

    async def acknowledge(self, action_id: str) -> None:
        """Mark an action as done.

        Raises:
            GatewayError.
        """
        headers = {"authorization": f"Bearer {await self._token()}"}
        path = f"{ACTIONS_PATH}/{quote(action_id, safe='')}/ack"
        try:
            answer = await self._client.post(
                self._url + path, headers=headers, extensions=self._extensions
            )
        except httpx.HTTPError as error:
            raise GatewayError(f"the gateway can't be reached: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise GatewayError(f"the gateway answers with status {answer.status_code}")
