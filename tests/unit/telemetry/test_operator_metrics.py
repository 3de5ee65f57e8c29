"""What the operator tells Prometheus of its queues and of the resources."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.reconcile.queue_helpers import Bench, on_bench

from llmbudget.reconcile.store import Store
from llmbudget.telemetry.operator_metrics import REGISTRY, ReadinessCollector


def value(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"name": "bench"}) or 0.0


def test_a_queue_tells_what_waits_what_was_done_and_what_failed() -> None:
    done, failed, waited = (
        value(f"workqueue_{name}")
        for name in ("work_duration_seconds_count", "retries_total", "queue_duration_seconds_sum")
    )

    async def scenario(bench: Bench) -> None:
        async def look() -> None:
            assert value("workqueue_depth") == 1, "b; a is worked on, and c is not due yet"

        bench.make(1)
        bench.failing["a"] = 2
        bench.during["a"] = look
        for key, delay in (("a", 0), ("b", 0), ("c", 500)):
            bench.queue.add(key, delay)
        await bench.work_for(60)
        assert value("workqueue_depth") == 0

    on_bench(scenario)
    assert value("workqueue_work_duration_seconds_count") - done == 4
    assert value("workqueue_retries_total") - failed == 2
    assert value("workqueue_queue_duration_seconds_sum") - waited < 1, "a delay is no waiting"


def test_a_key_waits_for_a_worker_from_the_time_it_was_due() -> None:
    waited = value("workqueue_queue_duration_seconds_sum")

    async def scenario(bench: Bench) -> None:
        bench.make(1)
        for key in ("a", "b", "c"):
            bench.queue.add(key)
        await bench.work_for(60)

    on_bench(scenario)
    seconds = value("workqueue_queue_duration_seconds_sum") - waited
    assert seconds == pytest.approx(0 + 0.001 + 0.002), "the work on a key takes a millisecond"


def resource(kind: str, name: str, *conditions: dict[str, Any], **spec: Any) -> dict[str, Any]:
    metadata = {"namespace": "llm", "name": name, "uid": name, "resourceVersion": "1"}
    status = {"conditions": list(conditions)}
    return {"kind": kind, "metadata": metadata, "spec": spec, "status": status}


def test_each_resource_says_whether_it_is_ready_and_why_not() -> None:
    store = Store()
    within = {"type": "WithinBudget", "status": "True", "reason": "UnderCap"}
    ready = {"type": "Ready", "status": "True", "reason": "Reconciled"}
    bad = {"type": "Ready", "status": "False", "reason": "SecretNotFound"}
    used = [{"name": "openai"}]
    store.put_budget(resource("LLMBudget", "team-a", within, ready, providers=used))
    store.put_budget(resource("LLMBudget", "new"))
    store.put_provider(resource("LLMProvider", "openai", bad))
    store.put_provider(resource("LLMProvider", "that-nobody-uses"))
    registry = CollectorRegistry()
    registry.register(ReadinessCollector(store.readiness))
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    assert found == {
        ("llmbudget_budget_ready", "llm/team-a", "Reconciled"): 1,
        ("llmbudget_budget_ready", "llm/new", ""): 0,
        ("llmbudget_provider_ready", "llm/openai", "SecretNotFound"): 0,
    }
    store.drop("LLMBudget", resource("LLMBudget", "new"))
    assert registry.get_sample_value("llmbudget_budget_ready", {"budget": "llm/new"}) is None
