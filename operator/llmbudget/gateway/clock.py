"""The ledger's clock: the API server's, kept going in between by this machine's steady clock.

Months must turn when everybody thinks they do, and a period never goes back: a wall clock that
jumps must not be able to turn one. So the wall clock is only compared: where it is off by more than
a minute, calls are denied.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from llmbudget.clients.cluster import ApiError, Cluster

log = logging.getLogger(__name__)

MOST_SECONDS: Final = 60.0
"""How far this machine's wall clock may be off, and the API server's may jump."""
_CHECK_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 2.0
_CONSISTENT: Final = 3
"""Readings in a row that must agree before a jump of the API server's clock is believed."""


def steady_seconds() -> float:
    """Read a clock that never jumps and goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TrustedClock:
    """The time, as the API server told it last."""

    def __init__(
        self,
        server: datetime,
        steady: Callable[[], float] = steady_seconds,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`steady` tells seconds since any instant, `wall` seconds since 1970."""
        self._steady = steady
        self._wall = wall
        self._set(server)
        self._jump = timedelta(0)
        self._jumps = 0

    @classmethod
    async def confirmed(cls, cluster: Cluster) -> TrustedClock:
        """Wait for the API server's time: without it no month can be named."""
        while True:
            try:
                return cls(await cluster.server_time())
            except ApiError as error:
                fields = {"why": str(error)}
                log.warning("waiting for the API server's time", extra={"fields": fields})
                await asyncio.sleep(_RETRY_SECONDS)

    def __call__(self) -> datetime:
        """Tell the time."""
        return self._server + timedelta(seconds=self._steady() - self._read_at)

    @property
    def wrong(self) -> bool:
        """Whether calls must be denied: this machine, or the API server, tells another time."""
        return abs(self._seconds_off()) > MOST_SECONDS or self._jumps > 0

    def _seconds_off(self) -> float:
        """Tell how far this machine's clock is ahead."""
        return self._wall() - self._steady() - self._ahead

    def take(self, server: datetime) -> None:
        """Take the API server's time over. One that jumped must be told several times."""
        jump = server - self()
        if abs(jump.total_seconds()) > MOST_SECONDS:
            same = abs((jump - self._jump).total_seconds()) <= MOST_SECONDS
            self._jumps = self._jumps + 1 if same else 1
            self._jump = jump
            log.error("the clock jumped", extra={"fields": {"seconds": jump.total_seconds()}})
            if self._jumps < _CONSISTENT:
                return
        self._jumps = 0
        self._set(server)

    def _set(self, server: datetime) -> None:
        self._server, self._read_at = server, self._steady()
        self._ahead = server.timestamp() - self._read_at
        """How many seconds more the wall clock should tell than the steady one."""

    async def follow(self, cluster: Cluster) -> None:
        """Compare until cancelled; an API server that is away proves nothing."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                self.take(await cluster.server_time())
            except ApiError:
                continue
            if self.wrong:
                log.error("clock", extra={"fields": {"off": round(self._seconds_off(), 1)}})
