"""What is told of a call when it is over: metrics and one line of log, never its content."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from llmbudget.api.money import NANO_PER_USD, Nano
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.prices import Usage
from llmbudget.ledger.interface import Status
from llmbudget.telemetry import metrics

log = logging.getLogger(__name__)


@dataclass(slots=True)
class CallRecord:
    """One attempt, as metrics and logs show it."""

    entry_id: str
    budget: str
    agent: str
    offer: Offer
    started: float = field(default_factory=time.monotonic)
    """When it was about to be sent."""

    def _labels(self) -> tuple[str, str, str]:
        return self.budget, self.offer.provider.name, self.offer.name

    def first_chunk(self) -> None:
        """The first bytes of a streamed answer came."""
        metrics.FIRST_CHUNK.labels(*self._labels()).observe(time.monotonic() - self.started)

    def end(self, status: Status, cost: Nano, usage: Usage | None, why: str | None = None) -> None:
        """The attempt is over."""
        labels = self._labels()
        seconds = time.monotonic() - self.started
        metrics.CALLS.labels(*labels, status.value).inc()
        # Prometheus counts in floats; the ledger is what is exact.
        metrics.COST.labels(*labels, self.agent).inc(cost / NANO_PER_USD)
        metrics.DURATION.labels(*labels).observe(seconds)
        if usage is not None:
            metrics.TOKENS.labels(*labels, "input").inc(usage.tokens_in)
            metrics.TOKENS.labels(*labels, "output").inc(usage.tokens_out)
        if status is not Status.OK or why is not None:
            fields = {
                "entry": self.entry_id,
                "budget": self.budget,
                "provider": self.offer.provider.name,
                "model": self.offer.name,
                "status": status.value,
                "cost_nano": cost,
                "seconds": round(seconds, 3),
                "why": why,
            }
            log.info("call", extra={"fields": fields})
