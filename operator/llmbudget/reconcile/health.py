"""Whether this process still sees what happens: what its liveness probe asks; and its metrics.

A watch that ends takes the process along; one that falls silent does not. But whatever the process
writes, and what it finds when it lists, its own watch of that kind must tell soon: the Lease, which
the leader renews every few seconds, budgets and providers. When it does not, the process is to be
started again. An API server that is away is no reason to: then nothing is written or listed, and
leading ends by itself.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from llmbudget.clients.watch_events import version_of
from llmbudget.telemetry.operator_metrics import REGISTRY

DEAF_SECONDS: Final = 25.0
"""How long a watch may stay silent about what is there."""
BEGIN_SECONDS: Final = 120.0
"""The same for one that has told nothing yet: at the start there may be thousands of objects."""
_HOST: Final = "0.0.0.0"  # noqa: S104 (the kubelet asks from the node)

Watch = tuple[str, str | None]
"""Kind and namespace; None: of all namespaces."""


class Health:
    """What is known of the watches."""

    def __init__(
        self, *, clusterwide: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clusterwide`: one watch of a kind is all of it; else each namespace has its own."""
        self._clusterwide = clusterwide
        self._clock = clock
        self._told: dict[Watch, int] = {}
        """The newest version that a watch has told."""
        self._unseen: dict[Watch, tuple[int, float]] = {}
        """The newest version that is there and not told yet, and since when there is one."""

    def written(self, kind: str, raw: Mapping[str, Any]) -> None:
        """An object was written; `raw` is what the API server answered."""
        watch = self._watch(kind, raw["metadata"]["namespace"])
        self._is_there(watch, version_of(raw))

    def listed(self, kind: str, namespace: str | None, newest: int) -> None:
        """Of all objects of a watch this is the newest version, 0 where there are none. What is
        gone will not be told any more."""
        watch = self._watch(kind, namespace)
        if newest <= self._told.get(watch, 0):
            self._unseen.pop(watch, None)
        self._is_there(watch, newest)

    def seen(self, kind: str, raw: Mapping[str, Any]) -> None:
        """A watch told of an object. What is older it has told before."""
        watch, version = self._watch(kind, raw["metadata"]["namespace"]), version_of(raw)
        self._told[watch] = max(version, self._told.get(watch, 0))
        unseen = self._unseen.pop(watch, None)
        if unseen is not None and unseen[0] > version:
            # It comes along, if late.
            self._unseen[watch] = unseen[0], self._clock()

    def problem(self) -> str | None:
        """Say what is wrong; None: nothing."""
        for watch, (_, since) in self._unseen.items():
            silent = self._clock() - since
            if silent > (DEAF_SECONDS if watch in self._told else BEGIN_SECONDS):
                kind = watch[0]
                return f"{kind}: what is there has not been told by the watch for {silent:.0f} s"
        return None

    def _watch(self, kind: str, namespace: str | None) -> Watch:
        return kind, None if self._clusterwide else namespace

    def _is_there(self, watch: Watch, version: int) -> None:
        if version > self._told.get(watch, 0):
            _, since = self._unseen.get(watch, (0, self._clock()))
            self._unseen[watch] = version, since


@asynccontextmanager
async def serve_health(health: Health, port: int) -> AsyncIterator[None]:
    """Answer `GET /healthz`: 200, or 503 with what is wrong; and `GET /metrics`.

    Raises:
        OSError: the port is taken.
    """

    async def answer(_: web.Request) -> web.Response:
        problem = health.problem()
        return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")

    async def metrics(_: web.Request) -> web.Response:
        headers = {"content-type": CONTENT_TYPE_LATEST}
        return web.Response(body=generate_latest(REGISTRY), headers=headers)

    app = web.Application()
    app.add_routes([web.get("/healthz", answer), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, handle_signals=False, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, _HOST, port).start()
        yield
    finally:
        await runner.cleanup()
