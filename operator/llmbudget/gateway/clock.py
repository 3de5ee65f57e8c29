"""The clock, compared with the API server's: months must turn when everybody thinks they do."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Final

from llmbudget.clients.cluster import ApiError, Cluster

log = logging.getLogger(__name__)

MOST_SECONDS: Final = 60.0
_CHECK_SECONDS: Final = 60.0


class ClockCheck:
    """Compares the clocks once a minute; an API server that is away proves nothing."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.off: float = 0.0
        """Seconds that this clock is ahead of the API server's; below 0: behind."""

    @property
    def wrong(self) -> bool:
        """Whether calls must be denied."""
        return abs(self.off) > MOST_SECONDS

    async def follow(self) -> None:
        """Compare until cancelled."""
        while True:
            try:
                self.off = (datetime.now(UTC) - await self._cluster.server_time()).total_seconds()
            except ApiError:
                pass
            else:
                if self.wrong:
                    log.error("clock", extra={"fields": {"seconds_off": self.off}})
            await asyncio.sleep(_CHECK_SECONDS)
