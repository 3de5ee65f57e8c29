"""The server of the gateway, and its certificate: renewed while it serves.

The kubelet swaps the volume when the Secret changes. A new pair that is good makes a new acceptor
beside the old one, which takes no more connections and ends once its calls have. A connection that
is just being made to the old one may be reset, as in any HTTP server that ends in order: clients
make it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from pathlib import Path
from typing import Final

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server

from llmbudget.gateway.app import App

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 5.0
"""How often the certificate's files are looked at."""
_BACKLOG: Final = 1024
_CONNECTIONS: Final = 65_536
_HEADER_MILLISECONDS: Final = 10_000
OVERLAP_SECONDS: Final = 0.5
"""How long two acceptors stand side by side: the new one must listen before the old one ends."""


class CertificateUnusable(OSError):
    """The certificate and its key can't be served with; the message says why."""


def server(app: App, host: str, port: int, tls: Path | None) -> Server:
    """Make the server; it serves plain HTTP without a certificate.

    Raises:
        CertificateUnusable.
    """
    if tls is not None:
        _check(tls)
    made = Server(
        app,
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=_BACKLOG,
        # Counted in connections: idle ones must not keep the kubelet's probes out.
        backpressure=_CONNECTIONS,
        http1_settings=HTTP1Settings(header_read_timeout=_HEADER_MILLISECONDS),
        log_enabled=False,
        ssl_cert=tls / "tls.crt" if tls else None,
        ssl_key=tls / "tls.key" if tls else None,
    )
    made.respawn_interval = OVERLAP_SECONDS
    return made


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
            _check(tls)
        except CertificateUnusable as error:
            log.error("certificate refused", extra={"fields": {"why": str(error)}})
            continue
        serving.build_ssl_context(
            tls / "tls.crt", tls / "tls.key", None, SSLProtocols.tls13, None, [], False
        )
        serving.reload()
        log.info("certificate renewed")


def _content(tls: Path) -> tuple[bytes, bytes] | None:
    """Read the pair; None: it is being swapped."""
    with contextlib.suppress(OSError):
        return (tls / "tls.crt").read_bytes(), (tls / "tls.key").read_bytes()
    return None


def _check(tls: Path) -> None:
    """Make sure that the pair is one."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls / "tls.crt", tls / "tls.key")
    except ssl.SSLError as error:
        why = f"{tls} has no certificate with its key: {error.reason or error}"
        raise CertificateUnusable(why) from None
    except OSError as error:
        raise CertificateUnusable(f"{tls} lacks tls.crt or tls.key: {error.strerror}") from None
