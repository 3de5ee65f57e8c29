"""Spans to an OpenTelemetry collector, where a budget asks for tracing.

Attributes follow the conventions for generative AI; there is no prompt, no completion, no token and
no key in them. Without a collector nothing is made, and the SDK is not even loaded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from llmbudget.telemetry.trace_context import TraceContext

if TYPE_CHECKING:
    from llmbudget.telemetry.otlp import Span, Tracer

_LAST_SECONDS: Final = 3.0
"""How long the last spans may take when the process ends."""


class Spans:
    """Makes spans and sends them where the configuration says."""

    def __init__(self, service: str) -> None:
        """`service` is the budget's account, which tells gateways apart."""
        self._service = service
        self._endpoint: tuple[str, bool] | None = None
        self._tracer: Tracer | None = None

    def configure(self, url: str | None, *, allow_private: bool = False) -> None:
        """Send to this URL from now on; None: make none."""
        endpoint = None if url is None else (url, allow_private)
        if endpoint == self._endpoint:
            return
        if self._tracer is not None:
            self._tracer.end()
        self._endpoint, self._tracer = endpoint, None
        if url is not None:
            # Only now: its packages take memory that a gateway without tracing does without.
            from llmbudget.telemetry.otlp import Tracer

            self._tracer = Tracer(self._service, url, allow_private=allow_private)

    def call(self, name: str, parent: TraceContext | None) -> Span | None:
        """Begin the span of a call that came in; None: nobody wants it."""
        return None if self._tracer is None else self._tracer.begin(name, parent, serving=True)

    def attempt(self, name: str, parent: TraceContext | None) -> Span | None:
        """Begin the span of an attempt at a provider; None: nobody wants it."""
        return None if self._tracer is None else self._tracer.begin(name, parent, serving=False)

    async def close(self) -> None:
        """Send the last ones, for so long as that may take."""
        if self._tracer is None:
            return
        ending = self._tracer.end()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LAST_SECONDS
        while ending.is_alive() and loop.time() < deadline:
            await asyncio.sleep(0.02)
