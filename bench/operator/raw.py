"""The peer: the same server-side applies by one bare asyncio client, as fast as it can."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from llmbudget.clients.kinds import kind_of

Manifest = dict[str, Any]
AT_ONCE: Final = 32
_HEADERS: Final = {"content-type": "application/apply-patch+yaml", "accept": "application/json"}


class Bare:
    """A client that does nothing but apply."""

    def __init__(self, kubeconfig: Path, token: str | None = None) -> None:
        """Act for a token's owner; None: for the kubeconfig's user."""
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server = cluster["server"]
        self._trust = _trust(cluster)
        token = token or config["users"][0]["user"]["token"]
        self._headers = _HEADERS | {"authorization": f"Bearer {token}"}

    async def apply_all(self, manifests: Iterable[Manifest]) -> tuple[int, float]:
        """Apply all; return how many, and in how many seconds.

        Raises:
            RuntimeError: one was refused.
        """
        return await self.apply_groups((manifest,) for manifest in manifests)

    async def create_all(self, manifests: Iterable[Manifest]) -> tuple[int, float]:
        """Create all of what is not there: as apply_all, for a third of the server's work."""
        return await self._send_groups("POST", ([manifest] for manifest in manifests))

    async def apply_groups(self, groups: Iterable[Sequence[Manifest]]) -> tuple[int, float]:
        """Apply groups at once, each in its order; of what has a status, that alone.

        Raises:
            RuntimeError: one was refused.
        """
        return await self._send_groups("PATCH", groups)

    async def _send_groups(
        self, method: str, groups: Iterable[Sequence[Manifest]]
    ) -> tuple[int, float]:
        waiting = iter(groups)
        connector = aiohttp.TCPConnector(limit=AT_ONCE, ssl=self._trust)
        async with aiohttp.ClientSession(connector=connector, headers=self._headers) as session:
            started = time.monotonic()
            counts = await asyncio.gather(
                *(self._work(session, method, waiting) for _ in range(AT_ONCE))
            )
        return sum(counts), time.monotonic() - started

    async def _work(
        self, session: aiohttp.ClientSession, method: str, waiting: Iterator[Sequence[Manifest]]
    ) -> int:
        count = 0
        for group in waiting:
            for manifest in group:
                await self._send(session, method, manifest)
            count += len(group)
        return count

    async def _send(self, session: aiohttp.ClientSession, method: str, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata.get("namespace"), metadata["name"])
        path += "/status" if "status" in manifest else ""
        url, headers = f"{self._server}{path}?fieldManager=bench&force=true", {}
        if method == "POST":
            path = kind_of(manifest).path(metadata.get("namespace"))
            url, headers = f"{self._server}{path}", {"content-type": "application/json"}
        text = json.dumps(manifest)
        async with session.request(method, url, data=text, headers=headers) as answer:
            said = await answer.text()
            if answer.status >= 400:
                raise RuntimeError(f"{path}: {said}")


def _trust(cluster: Manifest) -> ssl.SSLContext:
    if "certificate-authority" in cluster:
        return ssl.create_default_context(cafile=cluster["certificate-authority"])
    text = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return ssl.create_default_context(cadata=text)
