"""OpenTelemetry's SDK, as far as spans go: a bounded queue, and a thread that sends.

Where the collector is away, spans are dropped: nothing waits for it.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from requests.adapters import HTTPAdapter

from llmbudget.decide.addresses import ForbiddenAddress, choose
from llmbudget.telemetry.trace_context import TraceContext

Attributes = Mapping[str, str | int | float | bool]

_QUEUED: Final = 4096
"""Spans that may wait for the collector; what is beyond is dropped."""
_BATCH: Final = 512
_DELAY_MILLISECONDS: Final = 1000
_TIMEOUT_SECONDS: Final = 5.0


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


class _Session(requests.Session):
    """Goes to addresses that were checked, and nowhere else."""

    def __init__(self, allow_private: bool) -> None:
        super().__init__()
        # Proxies and credentials of the environment are not for this.
        self.trust_env = False
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Checked(allow_private))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Follow none."""
        return None


class _Checked(HTTPAdapter):
    """Resolves and checks a name, and connects to the address that was checked: its certificate is
    still checked against the name."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        super().__init__()

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: bool | str,
        cert: str | tuple[str, str] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Say which connection a request takes.

        Raises:
            requests.ConnectionError.
        """
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        name = host["host"]
        if host["scheme"] == "https":
            pool |= {"server_hostname": name, "assert_hostname": name}
        request.headers["Host"] = urlsplit(request.url or "").netloc
        return host | {"host": self._address(name, host["port"])}, pool

    def _address(self, name: str, port: int | None) -> str:
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            address = choose(
                name, [str(each[4][0]) for each in found], allow_private=self._allow_private
            )
        except (OSError, UnicodeError):
            raise requests.ConnectionError(f"{name} can't be resolved") from None
        except ForbiddenAddress as error:
            raise requests.ConnectionError(str(error)) from None
        if ipaddress.ip_address(address).is_loopback and name != address:
            raise requests.ConnectionError(f"{name} is at {address}, this gateway itself")
        return address


class Tracer:
    """Makes the spans of one service, and sends them to one collector."""

    def __init__(self, service: str, endpoint: str, *, allow_private: bool) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        session = _Session(allow_private)
        names = {"service.name": "llmbudget-gateway", "service.namespace": service}
        self._provider = TracerProvider(resource=Resource.create(names), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_SECONDS, session=session)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=_QUEUED,
                max_export_batch_size=_BATCH,
                schedule_delay_millis=_DELAY_MILLISECONDS,
            )
        )
        self._tracer = self._provider.get_tracer("llmbudget", version("llmbudget"))

    def begin(self, name: str, parent: TraceContext | None, *, serving: bool) -> Span:
        """Begin a span, of a call that came in or of one that goes out."""
        kind = SpanKind.SERVER if serving else SpanKind.CLIENT
        return Span(self._tracer.start_span(name, context=_context(parent), kind=kind))

    def end(self) -> threading.Thread:
        """Send what is left, in a thread that is not waited for unless somebody wants to."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        return ending


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
