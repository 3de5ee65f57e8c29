"""What is told of a call when it is over: metrics, spans and lines of log, never its content."""

from __future__ import annotations

import logging
import time
from typing import Any

from llmbudget.api.money import Nano
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.consumers import Consumer
from llmbudget.decide.cost import Usage
from llmbudget.gateway.ids import random_hex
from llmbudget.gateway.protocols.operation import Operation
from llmbudget.gateway.wire import Headers
from llmbudget.ledger.interface import Status
from llmbudget.telemetry.logs import CallLog
from llmbudget.telemetry.metrics import CALLS
from llmbudget.telemetry.spans import Spans
from llmbudget.telemetry.trace_context import TraceContext

log = logging.getLogger(__name__)

_SERVER_FAULT = 500


class CallStory:
    """A call from its arrival to its answer: one line of log, and one span, whatever became of it.
    Each attempt at a provider adds to it."""

    __slots__ = (
        *("_attempt", "_attempts", "_code", "_consumer", "_operation", "_parent", "_span"),
        *("_spans", "answered", "arrived", "request_id"),
    )

    def __init__(
        self, spans: Spans, request_id: str, parent: TraceContext | None, operation: Operation
    ) -> None:
        self.request_id = request_id
        self.arrived = time.monotonic()
        """By the steady clock."""
        self.answered = 200
        """Status that the caller was answered with."""
        self._spans = spans
        self._operation = operation
        self._consumer: Consumer | None = None
        self._span = spans.call(f"POST {operation.path}", parent)
        self._parent = parent if self._span is None else self._span.context
        self._attempts = 0
        self._attempt: dict[str, Any] = {}
        self._code = ""

    @property
    def operation(self) -> str:
        """`gen_ai.operation.name`."""
        return self._operation.name

    def by(self, consumer: Consumer) -> None:
        """It is known who calls."""
        self._consumer = consumer

    def begin_attempt(self, name: str) -> tuple[Any, TraceContext | None]:
        """Begin an attempt: its span, where there is one, and what its provider is told."""
        self._attempts += 1
        span = self._spans.attempt(name, self._parent)
        if span is not None:
            return span, span.context
        if self._parent is None:
            return None, None
        return None, self._parent._replace(span_id=random_hex())

    def attempted(self, fields: dict[str, Any]) -> None:
        """An attempt is over."""
        self._attempt = fields

    def refused(self, status: int, code: str) -> None:
        """The caller is answered with an error of the gateway's."""
        self.answered, self._code = status, code

    def end(self, lines: CallLog) -> None:
        """It is over."""
        consumer = self._consumer
        told: dict[str, Any] = {
            "request_id": self.request_id,
            "operation": self._operation.name,
            "budget": consumer.account.name if consumer else None,
            "consumer": consumer.name if consumer else None,
            "answered": self.answered,
            "code": self._code or None,
            "attempts": self._attempts,
            **self._attempt,
            "seconds": round(time.monotonic() - self.arrived, 4),
        }
        if self._parent is not None:
            told["trace_id"] = self._parent.trace_id
        lines.write(told)
        if self._span is not None:
            attributes: dict[str, Any] = {
                "http.request.method": "POST",
                "http.route": self._operation.path,
                "http.response.status_code": self.answered,
                "llmbudget.request_id": self.request_id,
            }
            if consumer is not None:
                attributes["llmbudget.budget"] = consumer.account.name
                attributes["llmbudget.consumer"] = consumer.name
            # A refusal is the gateway at its work: only its own faults are errors of it.
            self._span.end(attributes, self._code if self.answered >= _SERVER_FAULT else "")


class CallRecord:
    """One attempt, as metrics, spans and logs show it. It begins when it is about to be sent."""

    __slots__ = (
        *("_consumer", "_context", "_offer", "_series", "_span", "_started", "_story"),
        "entry_id",
    )

    def __init__(self, story: CallStory, entry_id: str, consumer: Consumer, offer: Offer) -> None:
        self.entry_id = entry_id
        self._story = story
        self._consumer = consumer
        self._offer = offer
        self._started = time.monotonic()
        self._series = CALLS.operation(
            story.operation, offer.provider.name, offer.name, consumer.account.name
        )
        self._span, self._context = story.begin_attempt(f"{story.operation} {offer.name}")

    @property
    def trace_headers(self) -> Headers:
        """What the provider is told of the trace: nothing where there is none."""
        return [] if self._context is None else [("traceparent", self._context.traceparent)]

    def first_chunk(self) -> None:
        """The first bytes of a streamed answer came."""
        now = time.monotonic()
        self._series.first_chunk.observe(now - self._started)
        self._series.first_token.observe(now - self._story.arrived)

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
        fields = {
            "entry": self.entry_id,
            "provider": provider,
            "model": offer.name,
            "status": status.value,
            "tokens_in": usage.tokens_in if usage else None,
            "tokens_out": usage.tokens_out if usage else None,
            "cost_nano": cost,
            "why": why,
        }
        self._story.attempted(fields)
        if status is not Status.OK or why is not None:
            known = {"request_id": self._story.request_id, "budget": budget}
            more = {"consumer": consumer.name, "seconds": round(seconds, 3)}
            log.info("attempt", extra={"fields": {**known, **fields, **more}})
        if self._span is not None:
            self._span.end(self._attributes(status, cost, usage), error)

    def _attributes(self, status: Status, cost: Nano, usage: Usage | None) -> dict[str, Any]:
        offer = self._offer
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": self._story.operation,
            "gen_ai.provider.name": offer.provider.name,
            "gen_ai.request.model": offer.name,
            "llmbudget.entry_id": self.entry_id,
            "llmbudget.status": status.value,
            "llmbudget.cost_nano_usd": cost,
        }
        if usage is not None:
            attributes["gen_ai.usage.input_tokens"] = usage.tokens_in
            attributes["gen_ai.usage.output_tokens"] = usage.tokens_out
        return attributes
