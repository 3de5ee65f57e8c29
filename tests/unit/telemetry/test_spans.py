"""Spans as a collector receives them, and what happens where there is none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests
from tests.support.collector import Collector, collecting

from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.local.process import free_port
from llmbudget.telemetry import otlp, spans
from llmbudget.telemetry.spans import Spans
from llmbudget.telemetry.trace_context import TraceContext

PARENT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


async def test_a_call_and_its_attempt_arrive_as_parent_and_child(collector: Collector) -> None:
    made = Spans("ns/team")
    made.configure(collector.url, allow_private=True)
    call = made.call("POST /v1/chat/completions", PARENT)
    assert call is not None
    attempt = made.attempt("chat large", call.context)
    assert attempt is not None
    attempt.end({"gen_ai.request.model": "large", "llmbudget.cost_nano_usd": 42}, "500")
    call.end({"http.response.status_code": 502})
    await made.close()
    inner, outer = collector.spans
    assert (outer.trace_id, outer.parent) == (PARENT.trace_id, PARENT.span_id)
    assert (inner.trace_id, inner.parent) == (PARENT.trace_id, outer.span_id)
    assert inner.span_id == attempt.context.span_id
    assert (outer.kind, inner.kind) == (2, 3), "SERVER and CLIENT"
    assert (outer.failed, inner.failed) == (False, True)
    assert inner.attributes == {
        "gen_ai.request.model": "large",
        "llmbudget.cost_nano_usd": 42,
        "error.type": "500",
    }
    assert outer.resource["service.name"] == "llmbudget-gateway"
    assert outer.resource["service.namespace"] == "ns/team"


async def test_a_trace_that_its_caller_does_not_sample_is_not_sent(collector: Collector) -> None:
    made = Spans("ns/team")
    made.configure(collector.url, allow_private=True)
    call = made.call("POST /", PARENT._replace(sampled=False))
    assert call is not None
    assert not call.context.sampled
    assert call.context.trace_id == PARENT.trace_id
    call.end({})
    begun = made.call("POST /", None)
    assert begun is not None
    begun.end({})
    await made.close()
    assert [span.trace_id for span in collector.spans] == [begun.context.trace_id]


async def test_without_a_collector_nothing_is_made(collector: Collector) -> None:
    made = Spans("ns/team")
    assert made.call("POST /", PARENT) is None
    made.configure(collector.url, allow_private=True)
    assert made.call("POST /", PARENT) is not None
    made.configure(None)
    assert made.attempt("chat", PARENT) is None
    await made.close()


@pytest.mark.parametrize(
    ("host", "allow_private"),
    [
        ("127.0.0.1", False),
        # A name that leads to this machine: the gateway's own.
        ("localhost", True),
    ],
)
async def test_where_spans_may_not_go_none_goes(
    collector: Collector, host: str, allow_private: bool
) -> None:
    made = Spans("ns/team")
    url = collector.url.replace("127.0.0.1", host)
    made.configure(url, allow_private=allow_private)
    span = made.call("POST /", PARENT)
    assert span is not None
    span.end({})
    await made.close()
    assert collector.spans == []


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "fd00:ec2::254"]
)
def test_a_name_that_leads_to_metadata_is_not_connected_to(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = [(0, 0, 0, "", (address, 4318))]
    monkeypatch.setattr(otlp.socket, "getaddrinfo", lambda *_, **__: answer)
    request = requests.Request("POST", "http://otel.tracing.svc:4318/v1/traces").prepare()
    with pytest.raises(requests.ConnectionError, match="where nothing is ever sent"):
        otlp._Session(allow_private=True).send(request, timeout=1)


async def test_a_redirect_is_not_followed(collector: Collector) -> None:
    async def elsewhere(request: Request, answer: Answer) -> None:
        answer.send(307, b"", headers={"location": collector.url})

    async with await serve(elsewhere, 0) as server:
        url = f"http://127.0.0.1:{port_of(server)}/v1/traces"
        session = otlp._Session(allow_private=True)
        found = await asyncio.to_thread(session.post, url, b"", timeout=5)
    assert found.status_code == 307


async def test_a_collector_that_does_not_answer_holds_nothing_up(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "_QUEUED", 600)
    monkeypatch.setattr(spans, "_LAST_SECONDS", 0.2)
    collector.answering.clear()
    for url in (collector.url, f"http://127.0.0.1:{free_port()}/v1/traces"):
        made = Spans("ns/team")
        made.configure(url, allow_private=True)
        for _ in range(3000):
            span = made.call("POST /", None)
            assert span is not None
            span.end({})
        # Beyond what may wait, spans are dropped: none of these waited for the collector.
        assert collector.spans == []
        await made.close()


def test_a_gateway_without_tracing_does_not_load_the_sdk() -> None:
    loaded = "import sys, llmbudget.cli.gateway; print('opentelemetry.sdk' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True)
    assert output.stdout.split() == [b"False"]
