"""One request of a caller, and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import unquote

from httptools import HttpParserInvalidURLError, parse_url

from llmbudget.gateway.wire import CallerGone, Fields, Headers

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_OLD: Final = "1.0"
_VERSIONS: Final = (_OLD, "1.1")
_CHUNK: Final = 64
"""Bytes of memory that a piece of a body takes beside its own."""
_MOST_CACHED: Final = 256
_LONGEST_CACHED: Final = 256
"""Bytes of a URL above which its path is read anew each time."""


class Way(Protocol):
    """The connection, as a request sees it."""

    loop: asyncio.AbstractEventLoop
    client: str
    """Address and port."""
    closed: bool
    full: asyncio.Future[None] | None
    """There while the caller has more to read than it should; resolved once it has not."""

    def write(self, data: bytes) -> None:
        """Write what goes out."""

    def follow(self) -> None:
        """Read on, where reading was stopped and need not be any more."""

    def cut(self) -> None:
        """Close at once."""

    def go_on(self, request: Incoming) -> None:
        """A request's answer is whole: the next one may be answered."""

    @property
    def ending(self) -> bool:
        """Whether no request may follow the one that is answered."""

    @property
    def date(self) -> bytes:
        """The header of the time."""


class Incoming:
    """A request and its answer: what the gateway sees of a caller. See `wire.Exchange`."""

    __slots__ = (
        *("_chunks", "_ended", "_old", "_waiter", "_wants_go", "_way"),
        *(
            "answer_headers",
            "answered",
            "broken",
            "client",
            "complete",
            "fields",
            "keep_alive",
            "method",
        ),
        *("path", "unread"),
    )

    def __init__(
        self, way: Way, method: str, url: bytes, fields: Fields, *, keep_alive: bool, version: str
    ) -> None:
        self._way = way
        self.client = way.client
        self.method = method
        self.path = _path_of(url) if len(url) <= _LONGEST_CACHED else _read_path(url)
        self.fields = fields
        self.answer_headers: Headers = []
        self.keep_alive = keep_alive
        self.complete = False
        """Whether the whole body is here."""
        self.broken = False
        """The rest of the body will never come."""
        self.unread = 0
        """Bytes of memory of the body that is here and was not read."""
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._wants_go = False
        self.answered = self._ended = False
        self._old = version == _OLD

    def problem(self, version: str) -> str | None:
        """Tell what is wrong with the request's head; None: nothing."""
        if version not in _VERSIONS:
            return "its version is neither 1.1 nor 1.0"
        if self.method == "CONNECT":
            return "there is no way through here"
        host = self._old
        for name, value in self.fields:
            if name == b"host":
                host = True
            elif name == b"transfer-encoding" and (self._old or value.lower() != b"chunked"):
                return "its Transfer-Encoding is another one than HTTP/1.1's chunked"
            elif name == b"expect":
                self._wants_go = value.lower() == b"100-continue" and not self._old
        return None if host else "it has no Host"

    # The body

    @property
    def received(self) -> bytes | None:
        """The body, where all of it is here and nothing was read yet; else None."""
        return b"".join(self._chunks) if self.complete else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Read the body in chunks.

        Raises:
            CallerGone: the rest of it will never come.
        """
        if self._wants_go and not self.complete:
            self._way.write(_CONTINUE)
        while True:
            if self._chunks:
                data = b"".join(self._chunks)
                self._chunks.clear()
                self.unread = 0
                self._way.follow()
                yield data
            elif self.complete:
                return
            elif self.broken:
                raise CallerGone
            else:
                await self._more()

    async def _more(self) -> None:
        self._waiter = self._way.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def add(self, chunk: bytes) -> None:
        """A piece of the body came."""
        if not self.answered:
            self._chunks.append(chunk)
            self.unread += len(chunk) + _CHUNK
            self.wake()

    def wake(self) -> None:
        """Something about the body has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The answer

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer at once. A request that broke off has its answer already."""
        if self.answered and self.broken:
            return
        content = b"" if self.method == "HEAD" else body
        self._begin(status, headers, b"content-length: %d\r\n" % len(body), content)
        self._end()

    def response_stream(self, status: int, headers: Headers) -> Incoming:
        """Answer bit by bit."""
        if self._old:
            # It ends with the connection, since it has no chunks.
            self.keep_alive = False
        length = b"" if self._old else b"transfer-encoding: chunked\r\n"
        self._begin(status, headers, length, b"")
        return self

    def _begin(self, status: int, headers: Headers, length: bytes, content: bytes) -> None:
        way = self._way
        if self.answered:
            raise RuntimeError("this request is answered already")
        self.answered = True
        if not self.complete:
            # What comes of the body now is dropped.
            self._chunks.clear()
            self.unread = 0
            way.follow()
        self.keep_alive = self.keep_alive and self.complete and not way.ending
        head = _head(status, headers + self.answer_headers, keep_alive=self.keep_alive)
        way.write(b"%b%b%b\r\n%b" % (head, way.date, length, content))

    async def send_bytes(self, data: bytes) -> None:
        """Send a piece of a streamed answer; return once there is room for more.

        Raises:
            CallerGone.
        """
        way = self._way
        if way.closed:
            raise CallerGone
        if data:
            way.write(data if self._old else b"%x\r\n%b\r\n" % (len(data), data))
            if way.full is not None:
                await way.full

    def end(self, *, whole: bool) -> None:
        """The application is done with it; without `whole`, before it was meant to."""
        if self._ended:
            return
        if not self.answered or not whole:
            # What is not whole must not be taken for it.
            self._way.cut()
        elif not self._old:
            self._way.write(b"0\r\n\r\n")
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._way.go_on(self)


def _head(status: int, headers: Headers, *, keep_alive: bool) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        # Whoever lets such a value come this far has a fault: it must not become a header.
        raise ValueError("a header has a line break")
    close = "" if keep_alive else "connection: close\r\n"
    return f"{_status_line(status)}{lines}{close}".encode("ascii")


@lru_cache
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"


def _read_path(url: bytes) -> str:
    """Decode the path of a request's target; empty where it has none."""
    try:
        path = parse_url(url).path
    except HttpParserInvalidURLError:
        path = None
    return unquote(path.decode("ascii")) if path else ""


_path_of = lru_cache(_MOST_CACHED)(_read_path)
