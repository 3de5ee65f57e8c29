"""The server of the gateway, and its certificate: renewed while it serves.

The kubelet swaps the volume when the Secret changes. A new pair that is good is shown to whoever
connects from then on; connections that stand are left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from pathlib import Path
from typing import Final

from llmbudget.gateway.callers import HEAD_SECONDS, Application, Callers

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 5.0
"""How often the certificate's files are looked at."""
_BACKLOG: Final = 1024


class CertificateUnusable(OSError):
    """The certificate and its key can't be served with; the message says why."""


class Server:
    """Listens, and answers whoever connects; plain HTTP without a certificate.

    Raises:
        CertificateUnusable.
    """

    def __init__(self, application: Application, host: str, port: int, tls: Path | None) -> None:
        self._callers = Callers(application)
        self._host = host
        self._port = port
        self._tls = None if tls is None else _context(tls)
        self._stop = asyncio.Event()

    async def serve(self) -> None:
        """Serve until stopped, and until the answers under way have ended.

        Raises:
            OSError: the port can't be listened on.
        """
        looking = asyncio.create_task(self._callers.look())
        try:
            listening = await asyncio.get_running_loop().create_server(
                self._callers.connect,
                self._host,
                self._port,
                backlog=_BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else HEAD_SECONDS,
            )
            await self._stop.wait()
            listening.close()
            self._callers.stop()
            await self._callers.gone.wait()
        finally:
            looking.cancel()

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
