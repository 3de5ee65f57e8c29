"""Connections to a provider: what was sent for certain, what was not, and what nobody knows.

The name is resolved and its addresses are checked here, and the connection goes to the address
that was checked, with the certificate checked against the name. Redirects are never followed, and
proxies that the environment names are never used: either would carry the key elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import (
    BuilderError,
    DetailedPyreqwestError,
    PoolTimeoutError,
    PyreqwestError,
)
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

from llmbudget.api.provider import KeyHeader
from llmbudget.contract.config import ProviderConfig
from llmbudget.gateway.addresses import ForbiddenAddress, choose
from llmbudget.gateway.breaker import Breaker
from llmbudget.gateway.wire import Headers

log = logging.getLogger(__name__)

RESOLVE_SECONDS: Final = 30.0
"""How long the addresses of a name are taken for granted."""
_FAILED_SECONDS: Final = 1.0
"""How long a name that could not be resolved is not asked for again."""
MAX_ANSWER: Final = 32 * 1024 * 1024
"""Bytes of the largest plain answer."""
_READ_AHEAD: Final = 0
"""Bytes of a body that the client collects before it gives any: by default it keeps a stream back
until there are 64 KiB of it, or its end."""
_CONNECTIONS: Final = 2048
_FAILURES: Final = 500
"""Statuses from here on say that the provider failed."""

_CONNECTING: Final = "client error (Connect)"
"""Cause of an error while connecting. The client's ConnectError alone does not say so: it stands
for everything that goes wrong before an answer, a request that was sent among them."""


class NotSent(Exception):
    """Certainly nothing reached the provider."""


class Doubtful(Exception):
    """The provider may have accepted the call: nobody knows what it charges."""


@dataclass(slots=True)
class Answer:
    """The provider's answer, its body still to be read."""

    status: int
    content_type: str
    request_id: str | None
    retry_after: str | None
    _response: Response
    _length: int | None
    """Bytes of the body; None: nobody said."""

    async def read_chunk(self) -> bytes | None:
        """Read what has come; None: the end.

        Raises:
            Doubtful.
        """
        try:
            chunk = await self._response.body_reader.read_chunk()
        except PyreqwestError:
            raise Doubtful("the answer broke off") from None
        return None if chunk is None else bytes(chunk)

    async def read(self) -> bytes:
        """Read the whole body.

        Raises:
            Doubtful: it broke off, or is larger than MAX_ANSWER.
        """
        if self._length is not None and self._length <= MAX_ANSWER:
            # Its end is known, so that one wait brings it all.
            try:
                return bytes(await self._response.bytes())
            except PyreqwestError:
                raise Doubtful("the answer broke off") from None
        parts, size = [], 0
        while (chunk := await self.read_chunk()) is not None:
            size += len(chunk)
            if size > MAX_ANSWER:
                raise Doubtful(f"the answer is larger than {MAX_ANSWER} bytes")
            parts.append(chunk)
        return b"".join(parts)


class Upstream:
    """One provider. Clients are made on first use and again when its address changes."""

    def __init__(self, provider: ProviderConfig, ca_directory: Path) -> None:
        self.provider = provider
        self._ca_directory = ca_directory
        parts = urlsplit(provider.endpoint)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._base = provider.endpoint.rstrip("/")
        self._client: Client | None = None
        self._address = ""
        self._resolved_at = float("-inf")
        self._failed_at = float("-inf")
        self._failure = ""
        self._connecting = asyncio.Lock()
        self.breaker = Breaker()
        self._total = timedelta(milliseconds=provider.total_timeout_ms)

    @contextlib.asynccontextmanager
    async def post(
        self, path: str, body: bytes, key: str, headers: Headers
    ) -> AsyncIterator[Answer]:
        """Send a call and give its answer, once the status and headers are there.

        Raises:
            NotSent, Doubtful.
        """
        trial = self.breaker.sending()
        try:
            request = self._request(await self._checked_client(), path, body, key, headers)
            response = await _begun(request)
        except (NotSent, Doubtful):
            self._learn(answered=False, trial=trial)
            raise
        self._learn(answered=response.status < _FAILURES, trial=trial)
        try:
            yield Answer(
                status=response.status,
                content_type=response.get_header("content-type") or "application/json",
                request_id=response.get_header("x-request-id"),
                retry_after=response.get_header("retry-after"),
                _response=response,
                _length=_whole_number(response.get_header("content-length")),
            )
        finally:
            await request.__aexit__(None, None, None)

    def _request(
        self, client: Client, path: str, body: bytes, key: str, headers: Headers
    ) -> StreamRequest:
        builder = (
            client.post(self._base + path)
            .header("content-type", "application/json")
            .header("accept-encoding", "identity")
            .header(*_auth(self.provider.key_header, key), is_sensitive=True)
            .timeout(self._total)
            .streamed_read_buffer_limit(_READ_AHEAD)
            .body_bytes(body)
        )
        for name, value in headers:
            builder = builder.header(name, value)
        return builder.build_streamed()

    def _learn(self, *, answered: bool, trial: bool) -> None:
        before = self.breaker.open
        if answered:
            self.breaker.answered()
        else:
            self.breaker.failed(trial=trial)
        if self.breaker.open != before:
            state = "left alone" if self.breaker.open else "used again"
            fields = {"provider": self.provider.name, "seconds": self.breaker.wait()}
            log.warning("provider %s", state, extra={"fields": fields})

    async def _checked_client(self) -> Client:
        if self._client is not None and time.monotonic() - self._resolved_at < RESOLVE_SECONDS:
            return self._client
        async with self._connecting:
            if time.monotonic() - self._failed_at < _FAILED_SECONDS:
                # All who waited learn it at once, instead of asking one after the other.
                raise NotSent(self._failure)
            if self._client is not None and time.monotonic() - self._resolved_at < RESOLVE_SECONDS:
                return self._client
            try:
                addresses = await self._resolve()
            except NotSent as error:
                self._failure, self._failed_at = str(error), time.monotonic()
                raise
            try:
                address = choose(self._host, addresses, allow_private=self.provider.allow_private)
            except ForbiddenAddress as error:
                raise NotSent(str(error)) from None
            # An address that still holds is kept, and its connections with it.
            if self._client is None or self._address not in addresses:
                self._address = address
                self._client = await asyncio.to_thread(self._build, address)
            self._resolved_at = time.monotonic()
            return self._client

    async def _resolve(self) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError:
            raise NotSent(f"{self._host} can't be resolved") from None
        return [str(info[4][0]) for info in found]

    def _build(self, address: str) -> Client:
        provider = self.provider
        builder = (
            ClientBuilder()
            .follow_redirects(False)
            .no_proxy()
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .referer(False)
            .default_cookie_store(False)
            .http1_only()
            .tcp_nodelay(True)
            .max_connections(_CONNECTIONS)
            .user_agent("llmbudget")
            .connect_timeout(timedelta(milliseconds=provider.connect_timeout_ms))
            .read_timeout(timedelta(milliseconds=provider.idle_timeout_ms))
        )
        if not _is_address(self._host):
            builder = builder.resolve(self._host, address, self._port)
        if provider.ca_file is not None:
            try:
                bundle = (self._ca_directory / provider.ca_file).read_bytes()
            except OSError:
                raise NotSent(f"the CA bundle {provider.ca_file} is missing") from None
            builder = builder.add_root_certificate_pem(bundle)
        return builder.build()


async def _begun(request: StreamRequest) -> Response:
    """Send a request, and wait for the answer's status and headers."""
    try:
        return await request.__aenter__()
    except PyreqwestError as error:
        if _never_connected(error):
            raise NotSent("can't connect") from None
        raise Doubtful("no answer came") from None


def _never_connected(error: PyreqwestError) -> bool:
    """Tell whether it is certain that no byte of the request was sent."""
    if isinstance(error, (BuilderError, PoolTimeoutError)):
        return True
    if not isinstance(error, DetailedPyreqwestError) or not error.details:
        return False
    return any(cause["message"] == _CONNECTING for cause in error.details["causes"] or ())


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _auth(header: KeyHeader, key: str) -> tuple[str, str]:
    if header is KeyHeader.AUTHORIZATION:
        return "authorization", f"Bearer {key}"
    return header.value, key


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
