"""The operator's metrics, their names and labels, in one place.

Queues and leadership have the names that Kubernetes' own controllers give them, so that dashboards
made for those fit. docs/observability.md lists all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

_QUEUE: Final = ("name",)
_SECONDS: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

LEADER: Final = Gauge(
    "leader_election_master_status", "1 while this replica acts.", _QUEUE, registry=REGISTRY
)
DEPTH: Final = Gauge("workqueue_depth", "Keys that wait for a worker.", _QUEUE, registry=REGISTRY)
WAITED: Final = Histogram(
    "workqueue_queue_duration_seconds",
    "From a key's being due to the beginning of its work.",
    _QUEUE,
    buckets=_SECONDS,
    registry=REGISTRY,
)
WORKED: Final = Histogram(
    "workqueue_work_duration_seconds",
    "How long the work on a key took.",
    _QUEUE,
    buckets=_SECONDS,
    registry=REGISTRY,
)
RETRIES: Final = Counter(
    "workqueue_retries", "How often the work on a key failed.", _QUEUE, registry=REGISTRY
)


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a resource's condition `Ready` says."""

    kind: str
    account: str
    """`namespace/name`."""
    ready: bool
    reason: str
    """Empty where there is no status yet."""


class ReadinessCollector(Collector):
    """The state of all resources, looked at when it is asked for."""

    def __init__(self, known: Callable[[], Iterable[Readiness]]) -> None:
        """`known` is asked at each scrape."""
        self._known = known

    def collect(self) -> Iterator[Metric]:
        """Write one series a resource."""
        families = {
            "LLMBudget": _family("budget", "1 while the budget is Ready; reason says why not."),
            "LLMProvider": _family("provider", "1 while the provider is; reason says why not."),
        }
        for each in self._known():
            families[each.kind].add_metric((each.account, each.reason), float(each.ready))
        yield from families.values()


def _family(what: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"llmbudget_{what}_ready", text, labels=(what, "reason"))
