"""A proxy before the real API server that plays its troubles: refusals, silence, old answers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import yaml
from aiohttp import web

_HOP = {"host", "connection", "transfer-encoding", "content-length", "content-encoding"}


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the API server."""

    number: int
    method: str
    path: str
    query: dict[str, list[str]] = field(default_factory=dict)
    body: bytes = b""

    @property
    def watch(self) -> bool:
        return "watch" in self.query

    @property
    def resource(self) -> str:
        """Such as `llmbudgets`, or `llmbudgets/status`."""
        parts = self.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        if parts and parts[0] == "namespaces" and len(parts) > 2:
            parts = parts[2:]
        return "/".join([*parts[:1], *parts[2:]])


Fault = Callable[[Call], Awaitable[web.StreamResponse | None]]
"""Answers a call in the API server's place, or raises; None: let it pass."""


async def none(_: Call) -> web.StreamResponse | None:
    return None


def refusal(status: int, reason: str = "", **headers: str) -> web.Response:
    """Refuse as the API server does."""
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": "played by a proxy",
        "code": status,
    }
    return web.json_response(body, status=status, headers=headers)


class ApiProxy:
    """Listens on the loopback, without TLS, and passes everything on but what `fault` takes."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._target = config["clusters"][0]["cluster"]["server"]
        self._trust = _trust(config["clusters"][0]["cluster"])
        self.fault: Fault = none
        self.after: Fault = none
        """As `fault`, once the API server has answered: what it said is lost then."""
        self.calls: list[Call] = []
        self.mute = ""
        """Watches of this resource stay open and say nothing more."""
        self.url = ""
        self._session: aiohttp.ClientSession | None = None
        self._watches: set[aiohttp.ClientResponse] = set()

    def cut(self) -> None:
        """Break off all watches."""
        for found in list(self._watches):
            found.close()

    def count(self) -> Counter[tuple[str, str]]:
        """Count calls by method and resource."""
        return Counter((call.method, call.resource) for call in self.calls)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ApiProxy]:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._trust)
        app = web.Application(client_max_size=16 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            self._session = session
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0]
            self.url = f"http://{host}:{port}"
            try:
                yield self
            finally:
                await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        parts = urlsplit(request.raw_path)
        query = parse_qs(parts.query)
        sent = await request.read()
        call = Call(len(self.calls), request.method, parts.path, query, sent)
        self.calls.append(call)
        played = await self.fault(call)
        if played is not None:
            return played
        assert self._session is not None
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        async with self._session.request(
            request.method,
            self._target + request.raw_path,
            headers=headers,
            data=sent or None,
            skip_auto_headers=("content-type",),
            timeout=aiohttp.ClientTimeout(total=None),
        ) as found:
            if call.watch:
                return await self._follow(request, found)
            body = await found.read()
            played = await self.after(call)
            if played is not None:
                return played
            kept = {
                k: v
                for k, v in found.headers.items()
                if k.lower() not in _HOP - {"content-encoding"}
            }
            return web.Response(status=found.status, body=body, headers=kept)

    async def _follow(
        self, request: web.Request, found: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        answer = web.StreamResponse(
            status=found.status, headers={"content-type": "application/json"}
        )
        await answer.prepare(request)
        self._watches.add(found)
        try:
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                async for line in found.content:
                    if self.mute and self.mute in request.path:
                        await asyncio.Event().wait()
                    await answer.write(line)
        finally:
            self._watches.discard(found)
        return answer


def gone() -> web.Response:
    """End a watch as the API server does when a version is too old."""
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    return web.Response(text=json.dumps({"type": "ERROR", "object": status}) + "\n")


def _trust(cluster: dict[str, Any]) -> ssl.SSLContext:
    if "certificate-authority" in cluster:
        return ssl.create_default_context(cafile=cluster["certificate-authority"])
    text = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return ssl.create_default_context(cadata=text)
