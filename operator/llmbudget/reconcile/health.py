"""Whether this process still sees what happens: what its liveness probe asks.

A watch that ends takes the process along; one that falls silent does not. The leader renews its
Lease every few seconds, and its own watch must tell it so: when it does not, the process is to be
started again. An API server that is away is no reason to: then nothing is renewed either, and
leading ends by itself.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

DEAF_SECONDS: Final = 40.0
"""How long the Lease's watch may stay silent about a renewal."""
_HOST: Final = "0.0.0.0"  # noqa: S104 (the kubelet asks from the node)


class Health:
    """What is known of the watches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._unseen: float | None = None
        """When the first renewal was that no watch has told of yet."""

    def renewed(self) -> None:
        """The Lease was written."""
        if self._unseen is None:
            self._unseen = self._clock()

    def seen(self) -> None:
        """The Lease's watch told something."""
        self._unseen = None

    def problem(self) -> str | None:
        """Say what is wrong; None: nothing."""
        if self._unseen is not None and self._clock() - self._unseen > DEAF_SECONDS:
            silent = self._clock() - self._unseen
            return f"the lease was renewed, and its watch has not told so for {silent:.0f} s"
        return None


@asynccontextmanager
async def serve_health(health: Health, port: int) -> AsyncIterator[None]:
    """Answer `GET /healthz`: 200, or 503 with what is wrong.

    Raises:
        OSError: the port is taken.
    """

    async def answer(_: web.Request) -> web.Response:
        problem = health.problem()
        return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")

    app = web.Application()
    app.add_routes([web.get("/healthz", answer)])
    runner = web.AppRunner(app, handle_signals=False, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, _HOST, port).start()
        yield
    finally:
        await runner.cleanup()
