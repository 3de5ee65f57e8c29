"""HTTP/1.1 to callers, in the event loop: one connection, one request after the other.

llhttp (httptools) reads the requests, strictly: what two servers could read differently is refused.
The connections are kept here, and not in a server's package: servers with threads of their own hand
each chunk of a stream from one to the other, and those that run in the event loop bound neither the
size of a request's head nor the time that it may take (docs/performance.md).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from heapq import nsmallest
from typing import Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from llmbudget.api.provider import Protocol
from llmbudget.gateway.incoming import Incoming
from llmbudget.gateway.protocols.errors import malformed, render
from llmbudget.gateway.wire import Fields

MAX_HEAD: Final = 64 * 1024
"""Bytes above which a request's head is refused, once they were read."""
HEAD_SECONDS: Final = 10.0
"""How long a request's head may take to come."""
IDLE_SECONDS: Final = 75.0
"""How long a connection is kept between two requests: longer than clients keep theirs."""
STALLED_SECONDS: Final = 60.0
"""How long a caller may leave unread what waits for it."""
LINGER_SECONDS: Final = 5.0
"""How long the rest of an answered request is read and dropped: a caller that is still sending
would see a broken connection instead of the answer."""
_LOOK_SECONDS: Final = 1.0
_MOST_UNREAD: Final = 256 * 1024
"""Bytes of a body above which its caller has to wait."""
_LET_GO: Final = 64
"""Connections that are closed at once where there are too many: the search for them costs more."""
_MOST_FIELDS: Final = 128
"""Headers of a request."""
_MOST_WAITING: Final = 16
"""Requests that may come before the one in front of them was answered."""
_PIECE: Final = 64 * 1024
"""Bytes that are written at once: how long a caller takes is measured from piece to piece."""
_FRAMING: Final = (b"content-length", b"transfer-encoding")
_NEVER: Final = float("inf")

Application = Callable[[Incoming], Awaitable[None]]


class Callers:
    """All connections of callers."""

    def __init__(self, application: Application, most: int) -> None:
        self.application = application
        self._most = most
        """Connections that may stand."""
        self.stopping = False
        """Connections end with the answers under way."""
        self.date = b""
        """The header of the time."""
        self.gone = asyncio.Event()
        """Set when it stops and the last connection is closed."""
        self.tasks: set[asyncio.Task[None]] = set()
        """Requests under way, also those whose answers are whole."""
        self._connections: set[CallerConnection] = set()

    def connect(self) -> CallerConnection:
        """Make the protocol of a new connection."""
        return CallerConnection(self)

    def begin(self, connection: CallerConnection) -> bool:
        """Take a connection; False: there are too many, and all of them have a call under way."""
        if not self.stopping and len(self._connections) >= self._most:
            self.let_go()
        if self.stopping or len(self._connections) >= self._most:
            return False
        self._connections.add(connection)
        return True

    def let_go(self) -> None:
        """Close some connections that wait for a request: those that would be closed first anyway.

        One that has asked nothing yet goes before one that is kept for the next request, so that
        whoever opens many and says little closes none but their own.
        """
        idle = [each for each in self._connections if each.idle]
        for connection in nsmallest(_LET_GO, idle, key=lambda each: each.deadline):
            self._connections.discard(connection)
            connection.cut()

    def end(self, connection: CallerConnection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)
        if self.stopping and not self._connections:
            self.gone.set()

    def stop(self) -> None:
        """Close the connections, each once its answer under way has ended."""
        self.stopping = True
        for connection in list(self._connections):
            connection.stop()
        if not self._connections:
            self.gone.set()

    async def look(self) -> None:
        """Close what is overdue and read the clock, again and again until cancelled: no timer a
        request."""
        loop = asyncio.get_running_loop()
        while True:
            self.date = f"date: {formatdate(usegmt=True)}\r\n".encode()
            now = loop.time()
            for connection in list(self._connections):
                if connection.deadline < now:
                    connection.expire()
            await asyncio.sleep(_LOOK_SECONDS)


class _Refused(Exception):
    """What came is no request that is answered; the message says why."""


class CallerConnection(asyncio.Protocol):
    """One connection of a caller."""

    def __init__(self, callers: Callers) -> None:
        self.loop = asyncio.get_running_loop()
        self.client = ""
        """Address and port."""
        self.closed = False
        self.deadline = self.loop.time() + HEAD_SECONDS
        """When it is closed."""
        self._callers = callers
        self._transport: asyncio.Transport
        self._parser = HttpRequestParser(self)
        self._url = b""
        self._fields: Fields = []
        self._between = 0
        """Bytes since a head or a piece of a body was read: of a head, or of trailers."""
        self._reading: Incoming | None = None
        """The request whose body comes."""
        self._answering: Incoming | None = None
        self._waiting: deque[Incoming] = deque()
        """Requests that came before the one in front of them was answered."""
        self.full: asyncio.Future[None] | None = None
        """There while the caller has more to read than it should; resolved once it has not."""
        self._outgoing: deque[memoryview] = deque()
        """What is written once the caller has read what is before it."""
        self._stuck = False
        """Whether the transport takes no more."""
        self._closing = False
        """Whether it is closed once everything is written."""
        self._heading = False
        """Whether a head has begun and is not whole."""
        self._paused = False
        self._last = False
        """What comes now is no request any more."""
        self._lingering = False
        self._upgrading = False

    @property
    def date(self) -> bytes:
        """The header of the time."""
        return self._callers.date

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, or for the rest of a request's head."""
        busy = self._answering is not None or self.full is not None
        return not (busy or self._closing or self._lingering)

    @property
    def ending(self) -> bool:
        """Whether no request may follow the one that is answered."""
        return self._callers.stopping or (self._last and not self._waiting)

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.client = f"{peer[0]}:{peer[1]}" if peer else ""
        if not self._callers.begin(self):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self._last or self._closing:
            return
        self._between += len(data)
        try:
            self._feed(data)
        except HttpParserError as error:
            found = error.__context__
            self._refuse(str(found if isinstance(found, _Refused) else f"it is no HTTP: {error}"))
        if self._between > MAX_HEAD:
            self._refuse(f"its head has more than {MAX_HEAD} bytes")
        self.follow()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._go_on_without_upgrade()
            else:
                return

    def pause_writing(self) -> None:
        """There is more to be read than the caller reads."""
        self._stuck = True
        if self.full is None:
            self.full = self.loop.create_future()
        self.deadline = self.loop.time() + STALLED_SECONDS

    def resume_writing(self) -> None:
        """The caller has read."""
        self._stuck = False
        self._push()
        if self._stuck:
            return
        self._make_room()
        if self._closing:
            self._transport.close()
        elif self._lingering:
            self.deadline = self.loop.time() + LINGER_SECONDS
        elif self._answering is not None:
            self.deadline = _NEVER
        else:
            self._next()
            self.follow()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self.closed = True
        # The parser knows its methods: without this, only the collector of cycles would free both.
        del self._parser
        self._fields = []
        self._waiting.clear()
        self._outgoing.clear()
        self._make_room()
        if self._reading is not None:
            self._break_off(self._reading)
        self._callers.end(self)

    # What the parser finds

    def on_message_begin(self) -> None:
        """A request begins."""
        self._heading = True
        if self._answering is None and self.full is None and not self._lingering:
            self.deadline = self.loop.time() + HEAD_SECONDS

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target came."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header was read, or a trailer, which means nothing here."""
        if self._reading is None:
            self._fields.append((name.lower(), value))
            if len(self._fields) > _MOST_FIELDS:
                raise _Refused(f"it has more than {_MOST_FIELDS} headers")

    def on_headers_complete(self) -> None:
        """The whole head is there."""
        if self._last:
            raise _Refused("the connection was ended before it")
        self._between = 0
        self._heading = False
        if self._upgrading:
            self._upgrading = False
            return
        if len(self._waiting) >= _MOST_WAITING:
            raise _Refused(f"more than {_MOST_WAITING} requests wait before it")
        parser = self._parser
        version = parser.get_http_version()
        request = Incoming(
            self,
            parser.get_method().decode("ascii"),
            self._url,
            self._fields,
            keep_alive=parser.should_keep_alive(),
            version=version,
        )
        self._url, self._fields = b"", []
        self._reading = request
        problem = request.problem(version)
        if problem is not None:
            raise _Refused(problem)
        if self._answering is None and self.full is None:
            self._begin(request)
        else:
            self._waiting.append(request)

    def on_body(self, body: bytes) -> None:
        """A piece of the body came."""
        self._between = 0
        if self._reading is not None:
            self._reading.add(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._parser.should_upgrade():
            return
        self._between = 0
        if self._reading is not None:
            self._reading.complete = True
            self._reading.wake()
            self._reading = None
        if self._lingering:
            self._last = True
            self._close()

    def _go_on_without_upgrade(self) -> None:
        """Stay with HTTP/1.1, as RFC 9110 allows: read the body by another parser, since this one
        takes what follows for something else."""
        self._upgrading = True
        fields = self._reading.fields if self._reading is not None else ()
        framing = [b"%b: %b\r\n" % each for each in fields if each[0] in _FRAMING]
        self._parser = HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._url = b""

    # One request after the other

    def _begin(self, request: Incoming) -> None:
        self._answering = request
        self.deadline = _NEVER
        task = self.loop.create_task(self._answer(request))
        self._callers.tasks.add(task)

    async def _answer(self, request: Incoming) -> None:
        whole = False
        try:
            await self._callers.application(request)
            whole = True
        finally:
            request.end(whole=whole)
            self._callers.tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def go_on(self, request: Incoming) -> None:
        """A request's answer is whole: the next one may be answered."""
        self._answering = None
        if self.closed or self._transport.is_closing():
            return
        if request.keep_alive and not self.ending:
            self._next()
            self.follow()
        elif request.complete or request.broken:
            self._close()
        else:
            self._lingering = True
            if self.full is None:
                self.deadline = self.loop.time() + LINGER_SECONDS
            self.follow()

    def _next(self) -> None:
        """Go on with the next request, once the caller has read the answer before it."""
        if self.full is not None or self._closing or self._transport.is_closing():
            return
        if self._waiting:
            self._begin(self._waiting.popleft())
        elif self._last:
            self._close()
        else:
            self.deadline = self.loop.time() + (HEAD_SECONDS if self._heading else IDLE_SECONDS)

    def _refuse(self, why: str) -> None:
        """What came is no request, and so is all that follows."""
        if self._last:
            return
        self._last = True
        request, self._reading = self._reading, None
        if request is not None and request in self._waiting:
            self._waiting.remove(request)
        if self._waiting or self._answering not in (None, request):
            return  # the last of those before it is the last one
        if request is None:
            request = Incoming(self, "", b"", [], keep_alive=False, version="1.1")
        self._break_off(request)
        if request.answered:
            self._close()
            return
        refusal = malformed(f"This is no request: {why}.")
        request.response_bytes(*render(refusal, Protocol.OPENAI))

    def _break_off(self, request: Incoming) -> None:
        request.broken = True
        request.wake()

    # The connection

    def write(self, data: bytes) -> None:
        """Write what goes out; nobody reads it where the connection is gone."""
        if self.closed:
            return
        if len(data) <= _PIECE and not self._outgoing:
            self._transport.write(data)
            return
        whole = memoryview(data)
        self._outgoing.extend(whole[at : at + _PIECE] for at in range(0, len(data), _PIECE))
        self._push()

    def _push(self) -> None:
        while self._outgoing and not self._stuck:
            self._transport.write(self._outgoing.popleft())

    def follow(self) -> None:
        """Stop reading while there is enough to do, and go on when there is not."""
        reading = self._reading
        enough = bool(self._waiting) or (reading is not None and reading.unread > _MOST_UNREAD)
        if enough != self._paused and not self.closed:
            self._paused = enough
            if enough:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def cut(self) -> None:
        """Close at once."""
        self._outgoing.clear()
        self._transport.abort()

    def _close(self) -> None:
        """Close, once everything is written; the caller has a while to read it."""
        self._closing = True
        self.deadline = self.loop.time() + STALLED_SECONDS
        if not self._outgoing:
            self._transport.close()

    def expire(self) -> None:
        """Its time is over."""
        if self.full is not None or self._closing:
            self.cut()
        else:
            self._close()

    def stop(self) -> None:
        """Close it, once its answer under way has ended."""
        if self._answering is None:
            self._close()

    def _make_room(self) -> None:
        room, self.full = self.full, None
        if room is not None and not room.done():
            room.set_result(None)
