"""Counts of calls, kept so that a call costs next to nothing and a scrape does the work.

A call looks its series up once and adds plain numbers, money as whole nano-dollars; only the event
loop's thread does. Labels become text when somebody scrapes. Whatever callers and configurations
bring, the number of series has a bound: what is beyond it is counted under "other".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from llmbudget.api.money import NANO_PER_USD, Nano

MOST_VALUES: Final = 100
"""Distinct values of one label."""
MOST_SERIES: Final = 2000
"""Distinct sets of labels of one metric, as in OpenTelemetry's SDKs."""
OTHER: Final = "other"

SECONDS: Final = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
    *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
FIRST_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TOKENS: Final = tuple(4**power for power in range(14))

OPERATION_LABELS: Final = (
    *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"),
    "budget",
)
MONEY_LABELS: Final = (
    *("budget", "gen_ai_provider_name", "gen_ai_request_model"),
    *("consumer", "agent"),
)

Series = TypeVar("Series")


class Histogram:
    """Observations in buckets."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value in its bucket; a bound belongs to the bucket below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Write it as Prometheus does: each bucket holds those below it too."""
        if not any(self._counts):
            return
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((_written(bound), float(total)))
        family.add_metric(labels, buckets, self._sum)


def _written(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))


class OperationSeries:
    """What calls of one operation on one model took."""

    __slots__ = ("duration", "first_chunk", "first_token", "tokens_in", "tokens_out")

    def __init__(self) -> None:
        self.duration: dict[str, Histogram] = {}
        """By `error.type`; empty: none."""
        self.first_chunk = Histogram(FIRST_SECONDS)
        self.first_token = Histogram(FIRST_SECONDS)
        self.tokens_in = Histogram(TOKENS)
        self.tokens_out = Histogram(TOKENS)

    def took(self, seconds: float, error: str) -> None:
        """An attempt is over; `error` is of few values, such as a status."""
        duration = self.duration.get(error)
        if duration is None:
            if len(self.duration) >= MOST_VALUES:
                error = OTHER
            duration = self.duration.setdefault(error, Histogram(SECONDS))
        duration.observe(seconds)


class MoneySeries:
    """What one consumer's calls of one model cost, exactly."""

    __slots__ = ("calls", "cost")

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        """By status in the ledger."""
        self.cost: dict[str, int] = {}
        """Nano-USD by status in the ledger."""

    def charged(self, status: str, cost: Nano) -> None:
        """Count an attempt."""
        self.calls[status] = self.calls.get(status, 0) + 1
        self.cost[status] = self.cost.get(status, 0) + cost


class Bounded(Generic[Series]):
    """Series by their labels, never more than the bounds allow."""

    def __init__(self, make: Callable[[], Series], labels: int) -> None:
        self._make = make
        self._series: dict[tuple[str, ...], Series] = {}
        self._values: tuple[set[str], ...] = tuple(set() for _ in range(labels))

    def at(self, labels: tuple[str, ...]) -> Series:
        """Find the series of a call."""
        found = self._series.get(labels)
        return found if found is not None else self._within_bounds(labels)

    def _within_bounds(self, labels: tuple[str, ...]) -> Series:
        kept = tuple(map(_bounded, labels, self._values))
        if kept not in self._series and len(self._series) >= MOST_SERIES:
            kept = (OTHER,) * len(labels)
        found = self._series.get(kept)
        if found is None:
            found = self._series[kept] = self._make()
        return found

    def items(self) -> Iterable[tuple[tuple[str, ...], Series]]:
        """List them."""
        return self._series.items()

    def clear(self) -> None:
        """Forget all."""
        self._series.clear()
        for values in self._values:
            values.clear()


def _bounded(value: str, known: set[str]) -> str:
    if value not in known:
        if len(known) >= MOST_VALUES:
            return OTHER
        known.add(value)
    return value


class CallMetrics(Collector):
    """All series of calls, under the names that Prometheus sees."""

    def __init__(self) -> None:
        self._operations = Bounded(OperationSeries, len(OPERATION_LABELS))
        self._money = Bounded(MoneySeries, len(MONEY_LABELS))

    def operation(self, name: str, provider: str, model: str, budget: str) -> OperationSeries:
        """Find the series of a call's operation."""
        return self._operations.at((name, provider, model, budget))

    def money(
        self, budget: str, provider: str, model: str, consumer: str, agent: str
    ) -> MoneySeries:
        """Find the series of a call's money."""
        return self._money.at((budget, provider, model, consumer, agent))

    def clear(self) -> None:
        """Forget all."""
        self._operations.clear()
        self._money.clear()

    def collect(self) -> Iterator[Metric]:
        """Write all series."""
        yield from self._collect_operations()
        yield from self._collect_money()

    def _collect_operations(self) -> Iterator[Metric]:
        duration = HistogramMetricFamily(
            "gen_ai_client_operation_duration_seconds",
            "From sending an attempt to a provider to the end of its answer.",
            labels=(*OPERATION_LABELS, "error_type"),
        )
        first_chunk = HistogramMetricFamily(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "From sending an attempt to a provider to the first bytes of its streamed answer.",
            labels=OPERATION_LABELS,
        )
        first_token = HistogramMetricFamily(
            "gen_ai_server_time_to_first_token_seconds",
            "From a call's arrival to the first bytes of its streamed answer.",
            labels=OPERATION_LABELS,
        )
        tokens = HistogramMetricFamily(
            "gen_ai_client_token_usage",
            "Tokens that a provider charged for.",
            labels=(*OPERATION_LABELS, "gen_ai_token_type"),
        )
        for labels, series in self._operations.items():
            for error, histogram in series.duration.items():
                histogram.add_to(duration, (*labels, error))
            series.first_chunk.add_to(first_chunk, labels)
            series.first_token.add_to(first_token, labels)
            series.tokens_in.add_to(tokens, (*labels, "input"))
            series.tokens_out.add_to(tokens, (*labels, "output"))
        yield from (duration, first_chunk, first_token, tokens)

    def _collect_money(self) -> Iterator[Metric]:
        names = (*MONEY_LABELS, "status")
        calls = CounterMetricFamily(
            "llmbudget_calls",
            "Attempts at a provider, by status in the ledger.",
            labels=names,
        )
        cost = CounterMetricFamily("llmbudget_cost_usd", "Money charged, in USD.", labels=names)
        for labels, series in self._money.items():
            for status, count in series.calls.items():
                calls.add_metric((*labels, status), count)
                # Prometheus counts in floats; the ledger is what is exact.
                cost.add_metric((*labels, status), series.cost[status] / NANO_PER_USD)
        yield from (calls, cost)
