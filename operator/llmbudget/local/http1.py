"""A small HTTP/1.1 server that can also answer wrongly, on purpose.

A provider that hangs, resets a connection in the middle of a stream or sends half an answer is what
a gateway must survive, and what a proper HTTP server refuses to play. This one speaks just enough
of the protocol: requests with `Content-Length`, one at a time on a kept connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, cast

MAX_HEAD: Final = 64 * 1024
_HEAD_END: Final = b"\r\n\r\n"
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 seconds: closing sends RST instead of FIN."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Answer:
    """The way back of one request."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.closed = asyncio.Event()
        """Set when the caller has gone."""

    def send(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer in one piece."""
        fields = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
        self.raw(_head(status, fields) + body)

    def start(self, content_type: str = "text/event-stream") -> None:
        """Begin an answer in chunks."""
        fields = {"content-type": content_type, "transfer-encoding": "chunked"}
        self.raw(_head(HTTPStatus.OK, fields))

    def chunk(self, data: bytes) -> None:
        """Send one chunk; an empty one ends the answer."""
        self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    def raw(self, data: bytes) -> None:
        """Send bytes that need not be HTTP, if anybody is left to read them."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection once everything is written."""
        self._transport.close()

    def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        if self._transport.is_closing():
            return
        handle: socket.socket = self._transport.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()


Handler = Callable[[Request, Answer], Awaitable[None]]


def _head(status: int, fields: Mapping[str, str]) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + _HEAD_END


class Connection(asyncio.Protocol):
    """One client connection: parses requests and hands them to the handler, in turn."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._buffer = bytearray()
        self._busy: asyncio.Task[None] | None = None
        self._answer: Answer | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, without Nagle's delay."""
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handler that nobody listens any more."""
        if self._answer is not None:
            self._answer.closed.set()

    def data_received(self, data: bytes) -> None:
        """Collect bytes until a request is complete."""
        self._buffer += data
        if self._busy is None:
            self._next()

    def _next(self) -> None:
        assert self._transport is not None
        try:
            request = self._parse()
        except (ValueError, UnicodeDecodeError):
            Answer(self._transport).send(HTTPStatus.BAD_REQUEST, b"{}")
            self._transport.close()
            return
        if request is None or self._transport.is_closing():
            return
        self._answer = Answer(self._transport)
        self._busy = asyncio.ensure_future(self._handler(request, self._answer))
        self._busy.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._busy = None
        if not task.cancelled() and task.exception() is not None:
            task.result()  # a fault of the simulator itself: let the loop report it
        self._next()

    def _parse(self) -> Request | None:
        """Take one complete request off the buffer.

        Raises:
            ValueError: this is no HTTP that the server speaks.
        """
        end = self._buffer.find(_HEAD_END)
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ValueError("head too large")
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        start = end + len(_HEAD_END)
        stop = start + int(headers.get("content-length", "0"))
        if len(self._buffer) < stop:
            return None
        body = bytes(self._buffer[start:stop])
        del self._buffer[:stop]
        return Request(method, path, headers, body)


async def serve(handler: Handler, port: int, host: str = "127.0.0.1") -> asyncio.Server:
    """Listen on the loopback, or where `host` says; port 0: any free one.

    Raises:
        OSError: the port is taken.
    """
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(handler), host, port, backlog=4096)


def port_of(server: asyncio.Server) -> int:
    """Tell the port that a server listens on."""
    port: int = server.sockets[0].getsockname()[1]
    return port
