"""HTTP as the gateway sees it: the server's interface (RSGI), typed, and a request's hygiene."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from typing import Final, Protocol

from llmbudget.gateway.ids import random_hex
from llmbudget.gateway.protocols.errors import malformed, too_large, unidentified

MAX_BODY: Final = 10 * 1024 * 1024
"""Bytes of the largest request body, but for those with a file."""
BODY_SECONDS: Final = 60.0
"""How long a body may take to come."""
_MAX_DRAIN: Final = 8
"""How many times as much is read and dropped of a body that is too large: a client that is still
sending would see a broken connection instead of the answer."""
_ONCE: Final = frozenset(
    {
        "authorization",
        "x-api-key",
        "api-key",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
    }
    | {"content-encoding"}
    | {"transfer-encoding", "x-llmbudget-budget", "x-llmbudget-envelope"}
    | {"x-llmbudget-task-id"}
)
"""Headers that mean something here, so that two of them mean nothing."""

_PLAIN: Final = "identity"
REQUEST_ID: Final = "x-request-id"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""What a caller may call a request; anything else could be taken for something in a log."""

Headers = list[tuple[str, str]]
_CLOSE: Final = ("connection", "close")


class RawHeaders(Protocol):
    """The server's header map; names are lower-case."""

    def keys(self) -> Iterable[str]:
        """All names, those of unreadable values too."""

    def get(self, key: str) -> str | None:
        """A header's value; None: there is none, or none that can be read."""

    def items(self) -> Iterable[tuple[str, str]]:
        """All headers whose values are readable, repeated ones too."""


class Scope(Protocol):
    """What the server says of a request."""

    @property
    def proto(self) -> str:
        """`http`, or `ws` for a WebSocket."""

    @property
    def method(self) -> str:
        """Such as GET."""

    @property
    def path(self) -> str:
        """Decoded path."""

    @property
    def client(self) -> str:
        """Address and port of the caller."""

    @property
    def headers(self) -> RawHeaders:
        """Headers."""


class Transport(Protocol):
    """A response under way."""

    async def send_bytes(self, data: bytes) -> None:
        """Send; raises when the caller is gone."""


class Exchange(Protocol):
    """The server's side of one request."""

    async def __call__(self) -> bytes:
        """Read the whole body."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Read the body in chunks."""

    async def client_disconnect(self) -> None:
        """Return when the caller goes away."""

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer at once."""

    def response_stream(self, status: int, headers: Headers) -> Transport:
        """Answer bit by bit."""


class Identified:
    """An exchange whose answer names the request and, where the gateway is `leaving`, tells the
    caller to use another connection from now on."""

    __slots__ = ("_exchange", "_more", "request_id")

    def __init__(self, exchange: Exchange, scope: Scope, *, leaving: bool = False) -> None:
        self._exchange = exchange
        # A bad one is no reason to refuse a call.
        asked = scope.headers.get(REQUEST_ID) or ""
        self.request_id = asked if _REQUEST_ID.fullmatch(asked) else random_hex()
        self._more = [(REQUEST_ID, self.request_id), *([_CLOSE] if leaving else ())]

    async def __call__(self) -> bytes:
        """Read the whole body."""
        return await self._exchange()

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Read the body in chunks."""
        return aiter(self._exchange)

    async def client_disconnect(self) -> None:
        """Return when the caller goes away."""
        await self._exchange.client_disconnect()

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer at once."""
        self._exchange.response_bytes(status, [*headers, *self._more], body)

    def response_stream(self, status: int, headers: Headers) -> Transport:
        """Answer bit by bit."""
        return self._exchange.response_stream(status, [*headers, *self._more])


class Request:
    """A request with its headers checked. `client` is the caller's address without port."""

    __slots__ = ("_exchange", "client", "headers", "method", "path")

    def __init__(self, scope: Scope, exchange: Exchange) -> None:
        self._exchange = exchange
        self.method = scope.method
        self.path = scope.path
        self.client = scope.client.rsplit(":", 1)[0]
        self.headers = _single(scope.headers)

    @property
    def token(self) -> str:
        """The caller's token.

        Raises:
            Refusal: 401 where there is none, 400 where there are two that differ.
        """
        scheme, _, bearer = self.headers.get("authorization", "").partition(" ")
        bearer = bearer.strip() if scheme.lower() == "bearer" else ""
        keys = (bearer, self.headers.get("x-api-key", ""), self.headers.get("api-key", ""))
        found = {key for key in keys if key}
        if len(found) > 1:
            raise malformed("Authorization, x-api-key and api-key differ: send one of them.")
        if not found:
            raise unidentified(
                "No token: send a ServiceAccount token with the audience llmbudget as"
                " Authorization: Bearer TOKEN, or as x-api-key or api-key."
            )
        return found.pop()

    async def body(self, most: int = MAX_BODY) -> bytes:
        """Read the body, of so many bytes at most.

        Raises:
            Refusal: 413, or 400 where it takes too long or is compressed.
        """
        if self.headers.get("content-encoding", _PLAIN).lower() != _PLAIN:
            # What it unfolds to has no bound that could be known before.
            raise malformed("The body is compressed: send it without Content-Encoding.")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read(most)
        except TimeoutError:
            raise malformed(f"The body did not come within {BODY_SECONDS:.0f} s.") from None

    async def _read(self, most: int) -> bytes:
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) <= most:
            return await self._exchange()
        read, chunks = 0, []
        async for chunk in self._exchange:
            read += len(chunk)
            if read <= most:
                chunks.append(chunk)
            elif read > _MAX_DRAIN * most:
                break
        if read > most:
            raise too_large(most)
        return b"".join(chunks)


def _single(raw: RawHeaders) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw.items():
        if name in headers and name in _ONCE:
            raise malformed(f"Header {name} is sent more than once.")
        headers[name] = value
    for name in raw.keys():  # noqa: SIM118
        # The server leaves out values that are not ASCII.
        if name in _ONCE and name not in headers:
            raise malformed(f"Header {name} has characters other than ASCII.")
    if "content-length" in headers and "transfer-encoding" in headers:
        raise malformed("Content-Length and Transfer-Encoding exclude each other.")
    return headers
