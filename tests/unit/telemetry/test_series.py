"""Metrics as Datadog takes them: gauges as they are, counts by what was added."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric

from llmbudget.telemetry.series import Deltas

TAGS = ("pod_name:a",)


class Source:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.spent = Gauge("spent_usd", "x", ("budget",), registry=self.registry)
        self.calls = Counter("calls", "x", ("status", "agent"), registry=self.registry)
        self.took = Histogram("took_seconds", "x", registry=self.registry)

    def families(self) -> list[Metric]:
        return list(self.registry.collect())


def told(deltas: Deltas, families: list[Metric], at: int = 100) -> dict[str, Any]:
    return {str(each["metric"]): each for each in deltas.series(families, at, 30).values()}


def test_gauges_counts_and_histograms() -> None:
    source, deltas = Source(), Deltas(TAGS)
    source.spent.labels("a/b").set(1.5)
    source.calls.labels("ok", "").inc(3)
    source.took.observe(0.25)
    source.took.observe(0.5)
    found = told(deltas, source.families())
    assert found["spent_usd"] == {
        **{"metric": "spent_usd", "type": 3, "tags": ["pod_name:a", "budget:a/b"]},
        "points": [{"timestamp": 100, "value": 1.5}],
    }
    assert found["calls"] == {
        **{"metric": "calls", "type": 1, "interval": 30, "tags": ["pod_name:a", "status:ok"]},
        "points": [{"timestamp": 100, "value": 3.0}],
    }
    assert found["took_seconds_count"]["points"][0]["value"] == 2.0
    assert found["took_seconds_sum"]["points"][0]["value"] == 0.75
    assert set(found) == {"spent_usd", "calls", "took_seconds_count", "took_seconds_sum"}


def test_a_count_is_told_once_and_what_was_not_taken_again() -> None:
    source, deltas = Source(), Deltas(TAGS)
    source.calls.labels("ok", "").inc(3)
    families = source.families()
    assert told(deltas, families)["calls"]["points"][0]["value"] == 3
    source.calls.labels("ok", "").inc(2)
    # Nobody took the first: its three are in the next one.
    later = source.families()
    found = deltas.series(later, 130, 30)
    assert [each["points"] for each in found.values()] == [[{"timestamp": 130, "value": 5.0}]]
    deltas.told(later, found)
    assert deltas.series(later, 160, 30) == {}
    source.calls.labels("ok", "").inc()
    assert told(deltas, source.families())["calls"]["points"][0]["value"] == 1
