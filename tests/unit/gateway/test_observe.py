"""What is told of a call: counts and one line where it did not end well, never its content."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
from tests.support.offers import offer
from tests.support.records import CONSUMER, call_record, call_story

from llmbudget.api.money import Nano
from llmbudget.decide.cost import Usage
from llmbudget.gateway.observe import CallRecord, CallStory
from llmbudget.gateway.protocols.chat import CHAT
from llmbudget.ledger.interface import Status
from llmbudget.telemetry import metrics
from llmbudget.telemetry.logs import CallLog
from llmbudget.telemetry.spans import Spans
from llmbudget.telemetry.trace_context import TraceContext, read_traceparent

MODEL = "observed-model"
OPERATION = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openrouter",
    "gen_ai_request_model": MODEL,
    "budget": "ns/team",
}
MONEY = {
    "budget": "ns/team",
    "gen_ai_provider_name": "openrouter",
    "gen_ai_request_model": MODEL,
    "consumer": "ns/app",
    "agent": "researcher",
}
USAGE = Usage(30, 12, 0, 0, 0)


@pytest.fixture
def record() -> CallRecord:
    return call_record(offer(MODEL), waited=100)


@pytest.fixture(autouse=True)
def fresh_metrics() -> None:
    metrics.CALLS.clear()


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


def fields(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(line)["fields"] for line in caplog.records if line.name.endswith("observe")]


@pytest.mark.parametrize("status", list(Status))
def test_a_call_is_counted_by_its_status(status: Status) -> None:
    call_record(offer(MODEL)).end(status, Nano(1_500_000_001), USAGE)
    call_record(offer(MODEL)).end(status, Nano(0), None, "status 500", "500")
    assert value("llmbudget_calls_total", **MONEY, status=status.value) == 2
    assert value("llmbudget_cost_usd_total", **MONEY, status=status.value) == 1.500000001
    tokens = "gen_ai_client_token_usage"
    for kind, number in (("input", 30), ("output", 12)):
        labels = OPERATION | {"gen_ai_token_type": kind}
        assert value(f"{tokens}_sum", **labels) == number
        assert value(f"{tokens}_count", **labels) == 1
    duration = "gen_ai_client_operation_duration_seconds"
    for error in ("", "500"):
        assert value(f"{duration}_count", **OPERATION, error_type=error) == 1
        assert value(f"{duration}_bucket", **OPERATION, error_type=error, le="+Inf") == 1


def test_tokens_fall_into_the_conventions_buckets(record: CallRecord) -> None:
    record.end(Status.OK, Nano(1), Usage(16, 17, 0, 0, 0))
    for kind, below, count in (("input", "16.0", 1), ("output", "16.0", 0), ("output", "64.0", 1)):
        labels = OPERATION | {"gen_ai_token_type": kind, "le": below}
        assert value("gen_ai_client_token_usage_bucket", **labels) == count


def test_a_first_chunk_is_timed_for_the_provider_and_for_the_caller(record: CallRecord) -> None:
    record.first_chunk()
    of_provider = value("gen_ai_client_operation_time_to_first_chunk_seconds_sum", **OPERATION)
    of_caller = value("gen_ai_server_time_to_first_token_seconds_sum", **OPERATION)
    assert of_provider is not None
    assert of_provider < 100 <= (of_caller or 0)


def test_tokens_nobody_knows_are_not_counted(record: CallRecord) -> None:
    record.end(Status.ERROR, Nano(5000), None, "no answer came", "no_answer")
    labels = OPERATION | {"gen_ai_token_type": "input"}
    assert value("gen_ai_client_token_usage_count", **labels) is None


def test_a_good_attempt_is_not_worth_a_line_of_its_own(
    record: CallRecord, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        record.end(Status.OK, Nano(42), USAGE)
    assert not fields(caplog)


@pytest.mark.parametrize(
    ("status", "why"),
    [(Status.ERROR, "no answer came"), (Status.FALLBACK, None), (Status.OK, "no usage")],
)
def test_any_other_attempt_is_one_line(
    record: CallRecord, caplog: pytest.LogCaptureFixture, status: Status, why: str | None
) -> None:
    with caplog.at_level(logging.INFO):
        record.end(status, Nano(42), None, why)
    (line,) = fields(caplog)
    assert line.pop("seconds") >= 0
    assert line == {
        "request_id": "request-1",
        "entry": "call-1",
        "budget": "ns/team",
        "consumer": "ns/app",
        "provider": "openrouter",
        "model": MODEL,
        "status": status.value,
        "tokens_in": None,
        "tokens_out": None,
        "cost_nano": 42,
        "why": why,
    }


class Lines(CallLog):
    """Keeps what would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[dict[str, Any]] = []

    def write(self, fields: Mapping[str, object]) -> None:
        self.written.append(dict(fields))


def test_a_call_is_one_line_however_many_attempts_it_took() -> None:
    story, lines = call_story(), Lines()
    CallRecord(story, "call-1", CONSUMER, offer(MODEL)).end(Status.ERROR, Nano(9), None, "late")
    CallRecord(story, "call-2", CONSUMER, offer(MODEL)).end(Status.FALLBACK, Nano(42), USAGE)
    story.end(lines)
    (line,) = lines.written
    assert line.pop("seconds") >= 0
    assert line == {
        "request_id": "request-1",
        "operation": "chat",
        "budget": "ns/team",
        "consumer": "ns/app",
        "answered": 200,
        "code": None,
        "attempts": 2,
        "entry": "call-2",
        "provider": "openrouter",
        "model": MODEL,
        "status": "fallback",
        "tokens_in": 30,
        "tokens_out": 12,
        "cost_nano": 42,
        "why": None,
    }


def test_a_refused_call_is_one_line_too() -> None:
    lines, trace = Lines(), "0af7651916cd43dd8448eb211c80319c"
    story = CallStory(Spans("ns/team"), "r", TraceContext(trace, "b7ad6b7169203331", True), CHAT)
    story.refused(402, "insufficient_quota")
    story.end(lines)
    (line,) = lines.written
    assert (line["answered"], line["code"], line["attempts"]) == (402, "insufficient_quota", 0)
    assert line["trace_id"] == trace
    assert line["consumer"] is None


def test_each_attempt_is_a_span_of_its_own_to_its_provider() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", False)
    story = CallStory(Spans("ns/team"), "r", parent, CHAT)
    records = [CallRecord(story, "call-1", CONSUMER, offer(MODEL)) for _ in range(2)]
    told = [dict(record.trace_headers)["traceparent"] for record in records]
    contexts = [read_traceparent(header) for header in told]
    assert all(found and found[0] == parent.trace_id and not found[2] for found in contexts)
    assert len({found[1] for found in contexts if found} | {parent.span_id}) == 3
    assert call_record(offer(MODEL)).trace_headers == []
