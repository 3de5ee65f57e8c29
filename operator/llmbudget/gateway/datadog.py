"""Metrics to Datadog: what Prometheus would scrape, sent twice a minute.

What Datadog does not take stays to be told: a count that was missed is in the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from pathlib import Path
from typing import Final

from llmbudget.clients.datadog import DatadogSender, NotTaken
from llmbudget.contract.config import DatadogConfig
from llmbudget.gateway.checked import CheckedTransport, trusted
from llmbudget.gateway.configuration import Configuration
from llmbudget.gateway.probes import Monitoring
from llmbudget.telemetry.series import Deltas

log = logging.getLogger(__name__)

SECONDS: Final = 30
"""Between two sendings."""
BATCH: Final = 1000
"""Series of one request: Datadog takes 500 kB."""
_LAST_SECONDS: Final = 2.0
"""For what is left when the process ends."""


class Datadog:
    """Sends what the configuration asks for."""

    def __init__(
        self, configuration: Configuration, monitoring: Monitoring, key_file: Path, budget: str
    ) -> None:
        self._configuration = configuration
        self._monitoring = monitoring
        self._key_file = key_file
        # Each pod counts by itself; without a tag of its own one would overwrite the other.
        self._deltas = Deltas((f"root_budget:{budget}", f"pod_name:{socket.gethostname()}"))
        self._sender: DatadogSender | None = None
        self._sender_of: tuple[DatadogConfig, str] | None = None

    async def follow(self) -> None:
        """Send until cancelled."""
        while True:
            await asyncio.sleep(SECONDS)
            await self._try()

    async def close(self) -> None:
        """Send what is left, if that is quick."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self._try()
        if self._sender is not None:
            await self._sender.close()

    async def _try(self) -> None:
        try:
            await self._send()
        except NotTaken as error:
            log.warning("datadog", extra={"fields": {"why": str(error)}})

    async def _send(self) -> None:
        config = self._configuration.document
        wanted = None if config is None else config.datadog
        sender = None if wanted is None else await self._connect(wanted)
        if sender is None:
            return
        families = self._monitoring.families(config)
        found = list(self._deltas.series(families, int(time.time()), SECONDS).items())
        for start in range(0, len(found), BATCH):
            batch = found[start : start + BATCH]
            await sender.send([series for _, series in batch])
            self._deltas.told(families, [key for key, _ in batch])

    async def _connect(self, wanted: DatadogConfig) -> DatadogSender | None:
        try:
            key = self._key_file.read_text().strip()
        except OSError:
            return None
        if key and self._sender_of != (wanted, key):
            if self._sender is not None:
                await self._sender.close()
            context = await asyncio.to_thread(trusted, None)
            transport = CheckedTransport(context, allow_private=wanted.allow_private)
            self._sender = DatadogSender(wanted.url, key, transport)
            self._sender_of = (wanted, key)
        return self._sender
