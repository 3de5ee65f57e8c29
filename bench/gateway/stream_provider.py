"""A provider that streams: each chunk carries the time at which it was written.

    python -m bench.gateway.stream_provider PORT CHUNKS RATE

Every request is answered with CHUNKS events, RATE a second, of which each holds CLOCK_MONOTONIC in
nanoseconds as its text, then the usage and `[DONE]`. One timer writes to all streams whose turn it
is, so that the provider itself takes little of the machine.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final

import uvloop

SLOTS: Final = 50
"""Moments of an interval at which streams are written to."""
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"bench","choices":'
    b'[{"index":0,"delta":{"content":"@%d@"},"finish_reason":null}]}\n\n'
)
_END: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"bench","choices":[],'
    b'"usage":{"prompt_tokens":20,"completion_tokens":%d,"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)


class Streams:
    """All streams, by the moment of the interval at which they are written to."""

    def __init__(self, chunks: int, rate: float) -> None:
        self.slots: list[set[Stream]] = [set() for _ in range(SLOTS)]
        self.chunks = chunks
        self.interval = 1 / rate
        self._next = 0

    async def run(self) -> None:
        """Write to each slot in turn, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        number = 0
        while True:
            due += self.interval / SLOTS
            await asyncio.sleep(max(0.0, due - loop.time()))
            for stream in list(self.slots[number % SLOTS]):
                stream.write()
            number += 1

    def begin(self, stream: Stream) -> None:
        """Give a stream its moment."""
        self._next = (self._next + 1) % SLOTS
        self.slots[self._next].add(stream)
        stream.slot = self._next


class Stream(asyncio.Protocol):
    """One connection; each request is a stream."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._left = 0
        self.slot = 0
        self._seen = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A caller connects."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """A request ends with its JSON object's last brace."""
        self._seen += data
        if self._seen.endswith(b"}"):
            self._seen = b""
            self._left = self._streams.chunks
            self._transport.write(_HEAD)
            self._streams.begin(self)
            self.write()

    def connection_lost(self, error: Exception | None) -> None:
        """The caller is gone."""
        self._streams.slots[self.slot].discard(self)

    def write(self) -> None:
        """Write the next event, or the end."""
        if self._left:
            self._left -= 1
            event = _EVENT % time.monotonic_ns()
            self._transport.write(b"%x\r\n%s\r\n" % (len(event), event))
            return
        self._streams.slots[self.slot].discard(self)
        chunks = self._streams.chunks
        event = _END % (chunks, chunks + 20)
        self._transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(event), event))


async def main() -> None:
    """Serve until killed."""
    port, chunks, rate = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    streams = Streams(chunks, rate)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Stream(streams), "127.0.0.1", port, backlog=4096)
    await streams.run()


if __name__ == "__main__":
    uvloop.run(main())
