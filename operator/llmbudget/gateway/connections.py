"""HTTP/1.1 to a provider, in the event loop: what was sent for certain, and what came back.

llhttp (httptools) reads the answers. The connections are kept here, and not in a client library,
since the clients that were measured cost three times as much as the rest of a call: they hand each
step of it to threads of their own, or build a dozen objects for it (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Callable
from typing import Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD: Final = 64 * 1024
"""Bytes of the longest status line with its headers."""
_MOST_UNREAD: Final = 256 * 1024
"""Bytes of a body above which a provider is made to wait for us."""
_MOST_IDLE: Final = 1024
_IDLE_SECONDS: Final = 30.0
"""How long an unused connection is kept; most servers keep theirs longer."""
_FRESH_SECONDS: Final = 0.5
"""How long an unused connection is thought to be open without a look at it."""
_INFORMATIONAL: Final = range(100, 200)


class NotSent(Exception):
    """Certainly nothing reached the provider."""


class Doubtful(Exception):
    """The provider may have accepted the call: nobody knows what it charges."""


class Connection(asyncio.Protocol):
    """One connection, for one exchange at a time: `send`, then `head`, then `read_chunk`s."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._parser = HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        """Of the answer, by lower-case names; the first of several."""
        self._between = 0
        """Bytes since the last piece of the body: of a head, of a chunk's, or of trailers."""
        self._headed = False
        self._complete = False
        self._until_close = False
        self._keep_alive = False
        self._unexpected = False
        self._chunks: list[bytes] = []
        self._unread = 0
        self._paused = False
        self._failure: str | None = None
        self._idle_seconds = self._total_end = self._last = 0.0

    # Sending

    def send(self, request: bytes, *, idle_seconds: float, total_seconds: float) -> None:
        """Send a request, and give its answer so long to come and each pause in it so long.

        Raises:
            NotSent: the connection is closed.
        """
        if not self.usable or self._transport is None:
            raise NotSent("the connection is closed")
        self._reset()
        now = self._loop.time()
        self._idle_seconds, self._total_end, self._last = idle_seconds, now + total_seconds, now
        self._transport.write(request)
        due = now + min(idle_seconds, total_seconds)
        if self._timer is None or self._timer.when() > due:
            self._watch()

    @property
    def usable(self) -> bool:
        """Whether a request can be sent."""
        return not self._closed and self._transport is not None and not self._transport.is_closing()

    # Receiving

    async def head(self) -> None:
        """Wait until the status and the headers are there.

        Raises:
            Doubtful: they never will.
        """
        while not self._headed:
            if self._failure is not None:
                raise Doubtful(f"no answer came: {self._failure}")
            await self._change()

    async def read_chunk(self) -> bytes | None:
        """Read what has come of the body; None: the end.

        Raises:
            Doubtful: it broke off.
        """
        while not self._chunks:
            if self._complete:
                return None
            if self._failure is not None:
                raise Doubtful(f"the answer broke off: {self._failure}")
            await self._change()
        chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._unread = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._last = self._loop.time()
            self._transport.resume_reading()
            self._watch()
        return chunk

    async def _change(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Ending

    def finish(self) -> bool:
        """End the exchange; True: the connection can take another one. One with an unread answer
        is closed."""
        keep = (
            self._complete
            and self.usable
            and not (self._unexpected or self._until_close or self._paused)
            and self._transport is not None
            and self._transport.get_write_buffer_size() == 0
            and self._keep_alive
        )
        if not keep:
            self.close()
        return keep

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def quiet(self) -> bool:
        """Look whether nothing has come since the last exchange, the connection's end included."""
        if not self.usable or self._transport is None:
            return False
        socket = self._transport.get_extra_info("socket")
        poll = select.poll()
        poll.register(socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def _fail(self, why: str) -> None:
        if self._failure is None and not self._complete:
            self._failure = why
        self.close()
        self._wake()

    def _watch(self) -> None:
        """Look again when the answer may be overdue: one timer at a time, however many exchanges
        and chunks, since most end long before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._complete or self._closed:
            return  # nobody waits for anything
        due = self._total_end
        if not self._paused:
            due = min(due, self._last + self._idle_seconds)
        now = self._loop.time()
        if now < due:
            self._timer = self._loop.call_at(due, self._watch)
            return
        self._timer = None
        if now >= self._total_end:
            self._fail("it took too long")
        else:
            self._fail(f"nothing came for {self._idle_seconds:g} s")

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        self._last = self._loop.time()
        if self._complete or not self._idle_seconds:
            # Nobody asked for it: who answers before the question answers the next one wrongly.
            self._unexpected = True
            self.close()
            return
        self._between += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._fail("it changes the protocol")
        except HttpParserError:
            self._fail("it is no HTTP")
        if self._between > MAX_HEAD:
            self._fail(f"its headers have more than {MAX_HEAD} bytes")
        if self._unread > _MOST_UNREAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # The parser knows its methods: without this, only the collector of cycles would free both.
        del self._parser
        if not self._complete and self._failure is None:
            if self._headed and self._until_close and error is None:
                self._complete = True
            else:
                self._failure = "the connection was closed"
        self._wake()

    # What the parser finds

    def on_message_begin(self) -> None:
        """An answer begins, or something else after it."""
        if self._complete:
            self._unexpected = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header was read."""
        if not (self._headed or self._unexpected):
            self.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """The status and all headers are there."""
        status = self._parser.get_status_code()
        if status in _INFORMATIONAL or self._unexpected:
            self.headers.clear()
            return
        self.status = status
        self._headed = True
        self._between = 0
        headers = self.headers
        self._until_close = b"content-length" not in headers and b"transfer-encoding" not in headers

    def on_body(self, body: bytes) -> None:
        """A piece of the body came."""
        self._between = 0
        if not self._unexpected:
            self._chunks.append(body)
            self._unread += len(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._headed:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()


class Pool:
    """The connections to one address of a provider."""

    def __init__(
        self, host: str, address: str, port: int, tls: ssl.SSLContext | None, connect_seconds: float
    ) -> None:
        self.address = address
        self._host = host
        self._port = port
        self._tls = tls
        self._connect_seconds = connect_seconds
        self._idle: list[tuple[Connection, float]] = []
        self._now: Callable[[], float] = asyncio.get_running_loop().time
        self._closed = False

    async def take(self) -> Connection:
        """Give an unused connection, or a new one.

        Raises:
            NotSent: there is none.
        """
        now = self._now()
        while self._idle:
            connection, since = self._idle.pop()
            unused = now - since
            if unused < _FRESH_SECONDS and connection.usable:
                return connection
            if unused < _IDLE_SECONDS and connection.quiet():
                return connection
            connection.close()
        return await self._connected()

    def give_back(self, connection: Connection) -> None:
        """End a connection's exchange, and keep it if it can be used again."""
        if connection.finish():
            if self._closed or len(self._idle) >= _MOST_IDLE:
                connection.close()
            else:
                self._idle.append((connection, self._now()))

    def close(self) -> None:
        """Close what is unused now, and what is in use once it is given back."""
        self._closed = True
        for connection, _ in self._idle:
            connection.close()
        self._idle.clear()

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        # The certificate is checked against the name, whatever the address.
        name = self._host if self._tls is not None else None
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(
                    Connection, self.address, self._port, ssl=self._tls, server_hostname=name
                )
        except TimeoutError:
            raise NotSent(f"can't connect within {self._connect_seconds:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise NotSent(f"its certificate is not accepted: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise NotSent(f"can't connect by TLS: {error.reason}") from None
        except OSError:
            raise NotSent("can't connect") from None
        return connection
