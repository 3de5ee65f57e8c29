"""Series of calls: bounded, whatever labels come."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmbudget.api.money import Nano
from llmbudget.telemetry import metrics, operator_metrics
from llmbudget.telemetry.calls import MOST_SERIES, MOST_VALUES, OTHER, CallMetrics

TEXT = (Path(__file__).parents[3] / "docs" / "observability.md").read_text(encoding="utf-8")


def samples(calls: CallMetrics) -> dict[tuple[str, ...], float]:
    """Money by budget and consumer, as Prometheus reads it."""
    registry = CollectorRegistry()
    registry.register(calls)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.labels["budget"], sample.labels["consumer"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "llmbudget_cost_usd_total"
    }


def test_consumers_beyond_the_bound_are_counted_together() -> None:
    calls = CallMetrics()
    for number in range(MOST_VALUES + 50):
        money = calls.money("ns/team", "sim", "small", f"ns/app-{number}", "agent")
        money.charged("ok", Nano(10**9))
    found = samples(calls)
    assert len(found) == MOST_VALUES + 1
    assert found[("ns/team", OTHER)] == 50
    assert sum(found.values()) == MOST_VALUES + 50, "no money is lost"
    assert found[("ns/team", "ns/app-0")] == 1


def test_a_series_that_is_there_goes_on_counting_beyond_the_bound() -> None:
    calls = CallMetrics()
    for number in range(2 * MOST_VALUES):
        calls.money("ns/team", "sim", "small", f"ns/app-{number}", "agent")
    calls.money("ns/team", "sim", "small", "ns/app-0", "agent").charged("ok", Nano(10**9))
    assert samples(calls) == {("ns/team", "ns/app-0"): 1}


def test_combinations_of_labels_are_bounded_too() -> None:
    calls = CallMetrics()
    for budget in range(MOST_VALUES):
        for consumer in range(MOST_VALUES):
            money = calls.money(f"ns/{budget}", "sim", "small", f"ns/app-{consumer}", "agent")
            money.charged("ok", Nano(10**9))
    found = samples(calls)
    assert len(found) == MOST_SERIES + 1
    assert found[(OTHER, OTHER)] == MOST_VALUES**2 - MOST_SERIES


def test_errors_of_a_provider_are_bounded() -> None:
    series = CallMetrics().operation("chat", "sim", "small", "ns/team")
    for status in range(400, 1000):
        series.took(0.1, str(status))
    assert len(series.duration) == MOST_VALUES + 1
    assert OTHER in series.duration


def test_money_adds_up_exactly() -> None:
    money = CallMetrics().money("ns/team", "sim", "small", "ns/app", "agent")
    for _ in range(1_000):
        money.charged("ok", Nano(10**15 + 1))
    assert money.cost == {"ok": 1_000 * (10**15 + 1)}


def test_the_document_lists_every_metric_and_no_other() -> None:
    listed = set(re.findall(r"^\| `([a-z_]+)` \| (?:counter|gauge|histogram)", TEXT, re.MULTILINE))
    readiness = operator_metrics.ReadinessCollector(tuple)
    ours = (metrics.REGISTRY, operator_metrics.REGISTRY, readiness)
    families = [family for each in ours for family in each.collect()]
    counters = {family.name for family in families if family.type == "counter"}
    names = {family.name for family in families} - counters | {f"{name}_total" for name in counters}
    assert listed == {name for name in names if not name.startswith(("process_", "python_"))}
