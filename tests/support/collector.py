"""A collector of spans: takes OTLP over HTTP, and decodes it as OpenTelemetry's own schema says."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """A span as it came."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    kind: int
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    """What was received so far."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.bytes = bytearray()
        self.answering = threading.Event()
        """It answers, and not only listens."""
        self.answering.set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def take(self, path: str, body: bytes) -> int:
        self.answering.wait(20)
        self.bytes += body
        if path != "/v1/traces":
            return 404
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            of = values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [received(span, of) for span in scope.spans]
        return 200

    def until(self, enough: Callable[[list[Received]], bool], seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while not enough(self.spans):
            assert time.monotonic() < deadline, f"only these came: {self.spans}"
            time.sleep(0.05)


def received(span: Any, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        failed=span.status.code == 2,
        attributes=values(span.attributes),
        resource=resource,
    )


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            self.send_response(collector.take(self.path, body))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield collector
    collector.answering.set()
    server.shutdown()
