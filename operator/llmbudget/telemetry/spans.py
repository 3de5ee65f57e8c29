"""Spans to an OpenTelemetry collector, where a budget asks for tracing.

A span is put into a bounded queue and sent by a thread: no call waits for the collector, and where
it is away, spans are dropped. Attributes follow the conventions for generative AI; there is no
prompt, no completion, no token and no key in them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

import requests
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from llmbudget.telemetry.trace_context import TraceContext

Attributes = Mapping[str, str | int | float | bool]

_QUEUED: Final = 4096
"""Spans that may wait for the collector; what is beyond is dropped."""
_BATCH: Final = 512
_DELAY_MILLISECONDS: Final = 1000
_TIMEOUT_SECONDS: Final = 5.0
_LAST_SECONDS: Final = 3.0
"""How long the last spans may take when the process ends."""


class Span:
    """One span under way."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def context(self) -> TraceContext:
        """What is called by it is told this."""
        found = self._span.get_span_context()
        return TraceContext(
            trace.format_trace_id(found.trace_id),
            trace.format_span_id(found.span_id),
            found.trace_flags.sampled,
        )

    def end(self, attributes: Attributes, error: str = "") -> None:
        """End it; `error` is a word of few."""
        self._span.set_attributes({**attributes, **({"error.type": error} if error else {})})
        if error:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class Spans:
    """Makes spans and sends them where the configuration says."""

    def __init__(self, service: str) -> None:
        """`service` is the budget's account, which tells gateways apart."""
        self._service = service
        self._endpoint: str | None = None
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)

    def configure(self, endpoint: str | None) -> None:
        """Send to this URL from now on; None: make none."""
        if endpoint == self._endpoint:
            return
        before, self._provider, self._tracer = self._provider, None, None
        self._endpoint = endpoint
        if before is not None:
            threading.Thread(target=before.shutdown, daemon=True).start()
        if endpoint is not None:
            self._provider = self._made(endpoint)
            self._tracer = self._provider.get_tracer("llmbudget", version("llmbudget"))

    def _made(self, endpoint: str) -> TracerProvider:
        session = requests.Session()
        # Proxies and credentials of the environment are not for this.
        session.trust_env = False
        names = {"service.name": "llmbudget-gateway", "service.namespace": self._service}
        provider = TracerProvider(resource=Resource.create(names), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_SECONDS, session=session)
        provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=_QUEUED,
                max_export_batch_size=_BATCH,
                schedule_delay_millis=_DELAY_MILLISECONDS,
            )
        )
        return provider

    def call(self, name: str, parent: TraceContext | None) -> Span | None:
        """Begin the span of a call that came in; None: nobody wants it."""
        return self._begin(name, parent, SpanKind.SERVER)

    def attempt(self, name: str, parent: TraceContext | None) -> Span | None:
        """Begin the span of an attempt at a provider; None: nobody wants it."""
        return self._begin(name, parent, SpanKind.CLIENT)

    def _begin(self, name: str, parent: TraceContext | None, kind: SpanKind) -> Span | None:
        if self._tracer is None:
            return None
        return Span(self._tracer.start_span(name, context=_context(parent), kind=kind))

    async def close(self) -> None:
        """Send the last ones, for so long as that may take."""
        if self._provider is None:
            return
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LAST_SECONDS
        while last.is_alive() and loop.time() < deadline:
            await asyncio.sleep(0.02)


def _context(parent: TraceContext | None) -> Context:
    if parent is None:
        return Context()
    found = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else 0),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(found), Context())
