"""The server of the gateway, and its certificate: renewed while it serves.

The kubelet swaps the volume when the Secret changes. A new pair that is good is shown to whoever
connects from then on; connections that stand are left alone.

Connections are accepted here and not by the event loop's server, which tells nobody of those that
have not finished their TLS handshake: whoever opens many and says nothing would take all the file
descriptors that there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections import Counter
from pathlib import Path
from typing import Final

from llmbudget.gateway.callers import HEAD_SECONDS, Application, Callers

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 5.0
"""How often the certificate's files are looked at."""
_BACKLOG: Final = 1024
_MOST_HANDSHAKES: Final = 512
"""Connections that have not finished their TLS handshake: above it, the oldest one gives way of the
address that has the most. Whoever means it needs milliseconds."""
_MOST_CONNECTIONS: Final = 4096
"""Connections after their handshake. Both are fewer where a process may open few files."""
_MOST_FILES: Final = 65_536
_EXHAUSTED_SECONDS: Final = 0.05
"""Between two tries to accept where the system has no room for a connection."""


class CertificateUnusable(OSError):
    """The certificate and its key can't be served with; the message says why."""


class Server:
    """Listens, and answers whoever connects; plain HTTP without a certificate.

    Raises:
        CertificateUnusable.
    """

    def __init__(self, application: Application, host: str, port: int, tls: Path | None) -> None:
        files = open_files()
        # A call has a connection to its provider too, and the ledger and the cluster want theirs.
        self._most_handshakes = min(_MOST_HANDSHAKES, files // 8)
        self._callers = Callers(application, min(_MOST_CONNECTIONS, files * 3 // 8))
        self._host = host
        self._port = port
        self._tls = None if tls is None else _context(tls)
        self._stop = asyncio.Event()
        self._listening: socket.socket | None = None
        self._arriving: dict[asyncio.Task[None], str] = {}
        """Connections that are not the callers' yet, the oldest first, and whose they are."""

    def listen(self) -> socket.socket:
        """Take the port: whoever connects from now on is served, as soon as `serve` runs.

        Raises:
            OSError: the port can't be listened on.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        address = (self._host.strip("[]"), self._port)
        self._listening = socket.create_server(address, family=family, backlog=_BACKLOG)
        self._listening.setblocking(False)
        return self._listening

    async def serve(self) -> None:
        """Serve until stopped, and until the answers under way have ended.

        Raises:
            OSError: the port can't be listened on.
        """
        listening = self._listening or self.listen()
        looking = asyncio.create_task(self._callers.look())
        accepting = asyncio.create_task(self._accept(listening))
        try:
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait({accepting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if accepting.done():
                accepting.result()
            await self._end(accepting, listening)
        finally:
            looking.cancel()
            accepting.cancel()
            listening.close()

    async def _end(self, accepting: asyncio.Task[None], listening: socket.socket) -> None:
        """Take no more connections, and wait for those that stand."""
        accepting.cancel()
        await asyncio.wait({accepting})
        listening.close()
        for arriving in list(self._arriving):
            arriving.cancel()
        self._callers.stop()
        await self._callers.gone.wait()

    async def _accept(self, listening: socket.socket) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except ConnectionAbortedError:
                continue  # it is gone already
            except OSError:
                # No descriptors or no memory: what waits longest is let go, and then it may do.
                self._give_way()
                self._callers.let_go()
                await asyncio.sleep(_EXHAUSTED_SECONDS)
                continue
            if len(self._arriving) >= self._most_handshakes:
                self._give_way()
            arriving = loop.create_task(self._arrive(connection))
            self._arriving[arriving] = address[0]
            arriving.add_done_callback(self._arrived)
            # A flood of connections must not keep the event loop for itself.
            await asyncio.sleep(0)

    def _give_way(self) -> None:
        """Drop a connection in its handshake: the oldest of the address that has the most."""
        for most, _ in Counter(self._arriving.values()).most_common(1):
            oldest = next(each for each, of in self._arriving.items() if of == most)
            del self._arriving[oldest]
            oldest.cancel()

    async def _arrive(self, connection: socket.socket) -> None:
        """Make a connection the callers', after its handshake."""
        loop = asyncio.get_running_loop()
        timeout = None if self._tls is None else HEAD_SECONDS
        with contextlib.suppress(OSError):  # it broke off, or speaks no TLS
            await loop.connect_accepted_socket(
                self._callers.connect, connection, ssl=self._tls, ssl_handshake_timeout=timeout
            )

    def _arrived(self, arriving: asyncio.Task[None]) -> None:
        self._arriving.pop(arriving, None)

    def stop(self) -> None:
        """Take no more connections, and end those that stand."""
        self._stop.set()

    def show(self, tls: Path) -> None:
        """Show another certificate from now on.

        Raises:
            CertificateUnusable: the one before is still shown.
        """
        _context(tls)
        assert self._tls is not None
        _load(self._tls, tls)


def open_files() -> int:
    """Raise the number of files that this process may open to what it is allowed, and tell it: many
    machines start containers with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(wanted, soft)


async def renew(serving: Server, tls: Path) -> None:
    """Serve with the pair that is in the folder now, whenever it changes, until cancelled."""
    before = _content(tls)
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        now = _content(tls)
        if now is None or now == before:
            continue
        before = now
        try:
            serving.show(tls)
        except CertificateUnusable as error:
            log.error("certificate refused", extra={"fields": {"why": str(error)}})
        else:
            log.info("certificate renewed")


def _content(tls: Path) -> tuple[bytes, bytes] | None:
    """Read the pair; None: it is being swapped."""
    with contextlib.suppress(OSError):
        return (tls / "tls.crt").read_bytes(), (tls / "tls.key").read_bytes()
    return None


def _context(tls: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, tls)
    return context


def _load(context: ssl.SSLContext, tls: Path) -> None:
    """Show a pair from now on; only one that is one will do."""
    try:
        context.load_cert_chain(tls / "tls.crt", tls / "tls.key")
    except ssl.SSLError as error:
        why = f"{tls} has no certificate with its key: {error.reason or error}"
        raise CertificateUnusable(why) from None
    except OSError as error:
        raise CertificateUnusable(f"{tls} lacks tls.crt or tls.key: {error.strerror}") from None
