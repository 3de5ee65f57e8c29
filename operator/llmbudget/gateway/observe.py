"""What is told of a call when it is over: metrics and one line of log, never its content."""

from __future__ import annotations

import logging
import time

from llmbudget.api.money import Nano
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.consumers import Consumer
from llmbudget.decide.prices import Usage
from llmbudget.ledger.interface import Status
from llmbudget.telemetry.metrics import CALLS

log = logging.getLogger(__name__)


class CallRecord:
    """One attempt, as metrics and logs show it. It begins when it is about to be sent."""

    __slots__ = ("_arrived", "_consumer", "_offer", "_series", "_started", "entry_id")

    def __init__(
        self, entry_id: str, operation: str, consumer: Consumer, offer: Offer, arrived: float
    ) -> None:
        self.entry_id = entry_id
        self._consumer = consumer
        self._offer = offer
        self._arrived = arrived
        self._started = time.monotonic()
        self._series = CALLS.operation(
            operation, offer.provider.name, offer.name, consumer.account.name
        )

    def first_chunk(self) -> None:
        """The first bytes of a streamed answer came."""
        now = time.monotonic()
        self._series.first_chunk.observe(now - self._started)
        self._series.first_token.observe(now - self._arrived)

    def end(
        self,
        status: Status,
        cost: Nano,
        usage: Usage | None,
        why: str | None = None,
        error: str = "",
    ) -> None:
        """The attempt is over. `why` is told in the log; `error` is a word of few, for metrics."""
        seconds = time.monotonic() - self._started
        consumer, offer, series = self._consumer, self._offer, self._series
        budget, provider = consumer.account.name, offer.provider.name
        series.took(seconds, error)
        if usage is not None:
            series.tokens_in.observe(usage.tokens_in)
            series.tokens_out.observe(usage.tokens_out)
        money = CALLS.money(budget, provider, offer.name, consumer.name, consumer.agent)
        money.charged(status.value, cost)
        if status is not Status.OK or why is not None:
            fields = {
                "entry": self.entry_id,
                "budget": budget,
                "consumer": consumer.name,
                "provider": provider,
                "model": offer.name,
                "status": status.value,
                "cost_nano": cost,
                "seconds": round(seconds, 3),
                "why": why,
            }
            log.info("call", extra={"fields": fields})
