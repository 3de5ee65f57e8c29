"""One port in front of several processes, as a Service is in front of pods: each new connection
goes to the next that is ready."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

_CHUNK: Final = 65_536


class Front:
    """Passes connections on to one of `ports`, in turn."""

    def __init__(self) -> None:
        self.ports: Sequence[int] = ()
        """Those that are ready; none: connections are refused by being closed."""
        self._turn = 0
        self._server: asyncio.Server | None = None

    @classmethod
    async def open(cls, port: int) -> Front:
        """Listen on a port of the loopback.

        Raises:
            OSError: the port is taken.
        """
        front = cls()
        front._server = await asyncio.start_server(front._serve, "127.0.0.1", port)
        return front

    def close(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            found = await self._connect()
            if found is None:
                return
            with contextlib.closing(found[1]):
                await _join(reader, writer, *found)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self.ports:
            self._turn += 1
            port = self.ports[self._turn % len(self.ports)]
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    """Pass bytes on both ways until the far side has said all."""
    up = asyncio.create_task(_pass(reader, far_writer))
    try:
        await _pass(far_reader, writer)
    finally:
        up.cancel()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
