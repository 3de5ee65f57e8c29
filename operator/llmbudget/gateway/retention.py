"""Old rows go, a few at a time, so that no call waits for it; the sums of their months stay."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from llmbudget.decide.periods import months_before
from llmbudget.gateway.configuration import Configuration
from llmbudget.ledger.interface import Ledger, LedgerError

log = logging.getLogger(__name__)

_CHECK_SECONDS: Final = 3600.0
_START_SECONDS: Final = 30.0
"""A gateway that has just started has better things to do."""
BATCH: Final = 500
PAUSE_SECONDS: Final = 0.05


class Retention:
    """Drops what the configuration lets go."""

    def __init__(
        self, ledger: Ledger, configuration: Configuration, start_seconds: float = _START_SECONDS
    ) -> None:
        self._ledger = ledger
        self._configuration = configuration
        self._start_seconds = start_seconds

    async def follow(self) -> None:
        """Look every hour until cancelled."""
        await asyncio.sleep(self._start_seconds)
        while True:
            try:
                dropped = await self.sweep()
            except LedgerError as error:
                log.warning("retention", extra={"fields": {"why": str(error)}})
            else:
                if dropped:
                    log.info("retention", extra={"fields": {"rows": dropped}})
            await asyncio.sleep(_CHECK_SECONDS)

    async def sweep(self) -> int:
        """Drop all that is old enough; tell how many rows went.

        Raises:
            LedgerError.
        """
        routes = self._configuration.routes
        months = routes.config.retention_months if routes is not None else None
        balances = self._ledger.balances()
        if months is None or routes is None or routes.config.root not in balances:
            return 0
        if not await self._ledger.leads():
            return 0
        before = months_before(balances[routes.config.root].period.name, months)
        dropped = 0
        while found := await self._ledger.forget(before, BATCH):
            dropped += found
            await asyncio.sleep(PAUSE_SECONDS)
        return dropped
