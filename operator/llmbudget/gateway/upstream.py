"""Connections to a provider: what was sent for certain, what was not, and what nobody knows.

The name is resolved and its addresses are checked here, and the connection goes to the address
that was checked, with the certificate checked against the name. Redirects are never followed, and
proxies that the environment names are never used: either would carry the key elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from llmbudget.api.credentials import KeyHeader
from llmbudget.contract.config import ProviderConfig
from llmbudget.decide.addresses import ForbiddenAddress, choose
from llmbudget.gateway.breaker import Breaker
from llmbudget.gateway.checked import BadBundle, resolve, trusted
from llmbudget.gateway.connections import Connection, Doubtful, NotSent, Pool
from llmbudget.gateway.wire import Headers

log = logging.getLogger(__name__)

RESOLVE_SECONDS: Final = 30.0
"""How long the addresses of a name are taken for granted."""
_FAILED_SECONDS: Final = 1.0
"""How long a name that could not be resolved is not asked for again."""
MAX_ANSWER: Final = 32 * 1024 * 1024
"""Bytes of the largest plain answer."""
_FAILURES: Final = 500
"""Statuses from here on say that the provider failed."""
_MILLISECONDS: Final = 1000
_MOST_HEADS: Final = 64
_PLAIN: Final = b"identity"
_NO_HEADER: Final = "a header has a character that no header may have"


@dataclass(slots=True)
class Answer:
    """The provider's answer, its body still to be read. It must be closed."""

    status: int
    content_type: str
    retry_after: str | None
    _connection: Connection
    _pool: Pool

    async def read_chunk(self) -> bytes | None:
        """Read what has come; None: the end.

        Raises:
            Doubtful.
        """
        return await self._connection.read_chunk()

    async def read(self) -> bytes:
        """Read the whole body.

        Raises:
            Doubtful: it broke off, or is larger than MAX_ANSWER.
        """
        parts, size = [], 0
        while (chunk := await self._connection.read_chunk()) is not None:
            size += len(chunk)
            if size > MAX_ANSWER:
                raise Doubtful(f"the answer is larger than {MAX_ANSWER} bytes")
            parts.append(chunk)
        return b"".join(parts)

    def close(self) -> None:
        """Let go of the connection; what is not read by now is not wanted."""
        self._pool.give_back(self._connection)


class Upstream:
    """One provider. Its pool is made on first use, and again when its address or the file with its
    certificate authorities changes."""

    def __init__(self, provider: ProviderConfig, ca_directory: Path) -> None:
        self.provider = provider
        parts = urlsplit(provider.endpoint)
        self._host = parts.hostname or ""
        self._secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._bundle = None if provider.ca_file is None else ca_directory / provider.ca_file
        self._bundle_read: tuple[int, ...] | None = None
        """Which state of the bundle is trusted now."""
        self._pool: Pool | None = None
        self._resolved_at = float("-inf")
        self._failed_at = float("-inf")
        self._failure = ""
        self._connecting = asyncio.Lock()
        self.breaker = Breaker()
        self._heads: dict[tuple[str, str, str], bytes] = {}
        """Heads of requests, by what they depend on: path, key and content type."""
        self._base_path = parts.path.rstrip("/")
        self._fixed_head = (
            f"host: {parts.netloc}\r\nuser-agent: llmbudget\r\naccept-encoding: identity\r\n"
        )

    async def post(
        self, path: str, body: bytes, key: str, headers: Headers, content_type: str
    ) -> Answer:
        """Send a call and give its answer, once the status and headers are there.

        Raises:
            NotSent, Doubtful.
        """
        try:
            request = self._request(path, body, key, headers, content_type)
        except ValueError as error:
            raise NotSent(str(error)) from None
        trial = self.breaker.sending()
        try:
            answer = await self._begun(request)
        except (NotSent, Doubtful):
            self._learn(answered=False, trial=trial)
            raise
        self._learn(answered=answer.status < _FAILURES, trial=trial)
        return answer

    def _request(
        self, path: str, body: bytes, key: str, headers: Headers, content_type: str
    ) -> bytes:
        known = (path, key, content_type)
        head = self._heads.get(known)
        if head is None:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            named = _auth(self.provider.key_header, key)
            fixed = _lines([("content-type", content_type), named])
            start = f"POST {self._base_path}{path} HTTP/1.1\r\n{self._fixed_head}"
            head = self._heads[known] = start.encode("ascii") + fixed
        more = _lines(headers) if headers else b""
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, more, len(body), body)

    async def _begun(self, request: bytes) -> Answer:
        pool = await self._checked_pool()
        connection = await pool.take()
        try:
            connection.send(
                request,
                idle_seconds=self.provider.idle_timeout_ms / _MILLISECONDS,
                total_seconds=self.provider.total_timeout_ms / _MILLISECONDS,
            )
            await connection.head()
            if connection.headers.get(b"content-encoding", _PLAIN).lower() != _PLAIN:
                # Asked for as it is, so that nothing has to be unfolded without a bound.
                raise Doubtful("its answer is compressed, which was not asked for")
        except BaseException:
            pool.give_back(connection)
            raise
        headers = connection.headers
        wait = headers.get(b"retry-after")
        return Answer(
            status=connection.status,
            content_type=headers.get(b"content-type", b"application/json").decode("latin-1"),
            retry_after=None if wait is None else wait.decode("latin-1"),
            _connection=connection,
            _pool=pool,
        )

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

    async def _checked_pool(self) -> Pool:
        if self._pool is not None and time.monotonic() - self._resolved_at < RESOLVE_SECONDS:
            return self._pool
        async with self._connecting:
            if time.monotonic() - self._failed_at < _FAILED_SECONDS:
                # All who waited learn it at once, instead of asking one after the other.
                raise NotSent(self._failure)
            if self._pool is not None and time.monotonic() - self._resolved_at < RESOLVE_SECONDS:
                return self._pool
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
            if (
                self._pool is None
                or self._pool.address not in addresses
                or self._bundle_read != self._bundle_state()
            ):
                await self._renew_pool(address)
            self._resolved_at = time.monotonic()
            assert self._pool is not None
            return self._pool

    async def _renew_pool(self, address: str) -> None:
        state = self._bundle_state()
        tls: ssl.SSLContext | None = None
        if self._secure:
            try:
                tls = await asyncio.to_thread(trusted, self._bundle)
            except BadBundle as error:
                raise NotSent(str(error)) from None
        seconds = self.provider.connect_timeout_ms / _MILLISECONDS
        before = self._pool
        self._pool = Pool(self._host, address, self._port, tls, seconds)
        self._bundle_read = state
        if before is not None:
            before.close()

    def _bundle_state(self) -> tuple[int, ...] | None:
        """Tell one state of the CA bundle's file from another; None: there is none."""
        if self._bundle is None:
            return None
        with contextlib.suppress(OSError):
            found = self._bundle.stat()
            return found.st_ino, found.st_mtime_ns, found.st_size
        return ()

    async def _resolve(self) -> list[str]:
        try:
            return await resolve(self._host, self._port)
        except OSError:
            raise NotSent(f"{self._host} can't be resolved") from None


def _lines(headers: Headers) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers]
    if not all(line.isprintable() for line in lines):
        # Whoever lets such a value come this far has a fault: it must not become a request.
        raise ValueError(_NO_HEADER)
    text = "".join([f"{line}\r\n" for line in lines])
    if not text.isascii():
        raise ValueError(_NO_HEADER)
    return text.encode("ascii")


def _auth(header: KeyHeader, key: str) -> tuple[str, str]:
    if header is KeyHeader.AUTHORIZATION:
        return "authorization", f"Bearer {key}"
    return header.value, key
