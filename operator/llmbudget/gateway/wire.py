"""HTTP as the gateway sees it: a request's hygiene, and the way back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
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

_MOST_HEADER: Final = 256
"""Characters of an idempotency key or a task id."""
_PLAIN: Final = "identity"
REQUEST_ID: Final = "x-request-id"
_REQUEST_ID_FIELD: Final = REQUEST_ID.encode()
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""What a caller may call a request; anything else could be taken for something in a log."""

Headers = list[tuple[str, str]]
Fields = list[tuple[bytes, bytes]]
"""Headers as they came, with names in lower case."""


class CallerGone(Exception):
    """The caller has closed the connection, or reads nothing any more."""


class Transport(Protocol):
    """A response under way."""

    async def send_bytes(self, data: bytes) -> None:
        """Send; return once there is room for more.

        Raises:
            CallerGone.
        """


class Exchange(Protocol):
    """A request as it came, and the way back."""

    method: str
    """Such as GET."""
    path: str
    """Decoded path."""
    client: str
    """Address and port of the caller."""
    fields: Fields
    """Headers."""
    answer_headers: Headers
    """Headers of the answer, whatever it is."""
    keep_alive: bool
    """Whether another request may follow on the connection."""
    answered: bool
    """Whether the answer has begun: there is only one."""

    @property
    def received(self) -> bytes | None:
        """The body, where all of it is here and nothing was read yet; else None."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Read the body in chunks.

        Raises:
            CallerGone.
        """

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer at once."""

    def response_stream(self, status: int, headers: Headers) -> Transport:
        """Answer bit by bit."""


def request_id_of(fields: Fields) -> str:
    """Tell what the caller calls its request, or name it: a bad name is no reason to refuse it."""
    for name, value in fields:
        if name == _REQUEST_ID_FIELD:
            asked = value.decode("latin-1")
            return asked if _REQUEST_ID.fullmatch(asked) else random_hex()
    return random_hex()


class Request:
    """A request with its headers checked. `client` is the caller's address without port."""

    __slots__ = ("_exchange", "client", "headers", "id", "method", "path")

    def __init__(self, exchange: Exchange, request_id: str) -> None:
        self.id = request_id
        self._exchange = exchange
        self.method = exchange.method
        self.path = exchange.path
        self.client = exchange.client.rsplit(":", 1)[0]
        self.headers = _single(exchange.fields)

    @property
    def token(self) -> str:
        """The caller's token.

        Raises:
            Refusal: 401 where there is none, 400 where there are two that differ.
        """
        scheme, _, bearer = self.headers.get("authorization", "").partition(" ")
        bearer = bearer.strip() if scheme.lower() == "bearer" else ""
        found = {bearer, self.headers.get("x-api-key", ""), self.headers.get("api-key", "")}
        found.discard("")
        if len(found) > 1:
            raise malformed("Authorization, x-api-key and api-key differ: send one of them.")
        if not found:
            raise unidentified(
                "No token: send your ServiceAccount's (for calls, with the audience llmbudget) as"
                " Authorization: Bearer TOKEN, or as x-api-key or api-key."
            )
        return found.pop()

    async def body(
        self, most: int = MAX_BODY, arrived: Callable[[int], None] = lambda _: None
    ) -> bytes:
        """Read the body, of so many bytes at most; `arrived` is told how many have come, and may
        refuse them.

        Raises:
            Refusal: 413, or 400 where it takes too long or is compressed.
        """
        if self.headers.get("content-encoding", _PLAIN).lower() != _PLAIN:
            # What it unfolds to has no bound that could be known before.
            raise malformed("The body is compressed: send it without Content-Encoding.")
        received = self._exchange.received
        if received is not None and len(received) <= most:
            arrived(len(received))
            return received
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read(most, arrived)
        except TimeoutError:
            raise malformed(f"The body did not come within {BODY_SECONDS:.0f} s.") from None

    async def _read(self, most: int, arrived: Callable[[int], None]) -> bytes:
        read, chunks = 0, []
        async for chunk in self._exchange:
            read += len(chunk)
            if read <= most:
                arrived(len(chunk))
                chunks.append(chunk)
            elif read > _MAX_DRAIN * most:
                break
        if read > most:
            raise too_large(most)
        return b"".join(chunks)


def _single(fields: Fields) -> dict[str, str]:
    headers: dict[str, str] = {}
    for field, raw in fields:
        name = field.decode("ascii")
        if name in _ONCE:
            if name in headers:
                raise malformed(f"Header {name} is sent more than once.")
            if not raw.isascii():
                raise malformed(f"Header {name} has characters other than ASCII.")
        if raw.isascii():
            headers[name] = raw.decode("ascii").strip()
    if "content-length" in headers and "transfer-encoding" in headers:
        raise malformed("Content-Length and Transfer-Encoding exclude each other.")
    return headers


def checked_headers(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Read the caller's idempotency key and task id.

    Raises:
        Refusal: 400.
    """
    values = [headers.get(name) for name in ("idempotency-key", "x-llmbudget-task-id")]
    for name, value in zip(("Idempotency-Key", "x-llmbudget-task-id"), values, strict=True):
        if value is not None and not 0 < len(value) <= _MOST_HEADER:
            raise malformed(f"{name} must have 1 to {_MOST_HEADER} characters.")
    return values[0], values[1]
