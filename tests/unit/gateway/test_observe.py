"""What is told of a call: counts and one line where it did not end well, never its content."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.offers import offer

from llmbudget.api.money import Nano
from llmbudget.decide.prices import Usage
from llmbudget.gateway.observe import CallRecord
from llmbudget.ledger.interface import Status
from llmbudget.telemetry import metrics

MODEL = "observed-model"
LABELS = {
    "budget": "ns/team",
    "gen_ai_provider_name": "openrouter",
    "gen_ai_request_model": MODEL,
}
USAGE = Usage(30, 12, 0, 0, 0)


@pytest.fixture
def record() -> CallRecord:
    return CallRecord("call-1", "ns/team", "researcher", offer(MODEL))


@pytest.fixture(autouse=True)
def fresh_metrics() -> Iterator[None]:
    yield
    for metric in (metrics.CALLS, metrics.COST, metrics.TOKENS, metrics.DURATION):
        metric.clear()


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, LABELS | labels)


def fields(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(line)["fields"] for line in caplog.records if line.name.endswith("observe")]


@pytest.mark.parametrize("status", list(Status))
def test_a_call_is_counted_by_its_status(record: CallRecord, status: Status) -> None:
    record.end(status, Nano(1_500_000_000), USAGE)
    record.end(status, Nano(0), None)
    assert value("llmbudget_calls_total", status=status.value) == 2
    assert value("llmbudget_cost_usd_total", agent="researcher") == 1.5
    assert value("gen_ai_client_token_usage_total", gen_ai_token_type="input") == 30
    assert value("gen_ai_client_token_usage_total", gen_ai_token_type="output") == 12
    assert value("gen_ai_client_operation_duration_seconds_count") == 2


def test_tokens_nobody_knows_are_not_counted(record: CallRecord) -> None:
    record.end(Status.ERROR, Nano(5000), None, "no answer came")
    assert value("gen_ai_client_token_usage_total", gen_ai_token_type="input") is None


def test_a_good_call_is_not_worth_a_line(
    record: CallRecord, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        record.end(Status.OK, Nano(42), USAGE)
    assert not fields(caplog)


@pytest.mark.parametrize(
    ("status", "why"),
    [(Status.ERROR, "no answer came"), (Status.FALLBACK, None), (Status.OK, "no usage")],
)
def test_any_other_call_is_one_line(
    record: CallRecord, caplog: pytest.LogCaptureFixture, status: Status, why: str | None
) -> None:
    with caplog.at_level(logging.INFO):
        record.end(status, Nano(42), None, why)
    (line,) = fields(caplog)
    assert line.pop("seconds") >= 0
    assert line == {
        "entry": "call-1",
        "budget": "ns/team",
        "provider": "openrouter",
        "model": MODEL,
        "status": status.value,
        "cost_nano": 42,
        "why": why,
    }
