"""Metrics in the form of Datadog's API for series: gauges as they are, counts by what was added.

A histogram becomes two counts, of its observations and of their sum: each bucket would be a series
that Datadog bills.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

Document = dict[str, object]
_COUNT, _GAUGE = 1, 3
"""Types of series in Datadog's API."""
_COUNTED: Final = {"counter": ("_total",), "histogram": ("_count", "_sum")}
Key = tuple[str, tuple[str, ...]]


class Deltas:
    """What of each count was told already."""

    def __init__(self, tags: Iterable[str]) -> None:
        self._tags = tuple(tags)
        """Of every series."""
        self._told: dict[Key, float] = {}

    def series(self, families: Iterable[Metric], at: int, seconds: int) -> dict[Key, Document]:
        """Write all that is new since what was told last, as of `at` in seconds since the epoch."""
        found: dict[Key, Document] = {}
        for family in families:
            for sample in family.samples:
                key = (sample.name, self._tags + _tags(sample.labels))
                written = self._written(family.type, sample, key, at, seconds)
                if written is not None:
                    found[key] = written
        return found

    def _written(
        self, kind: str, sample: Sample, key: Key, at: int, seconds: int
    ) -> Document | None:
        if kind == "gauge":
            return _document(key, _GAUGE, sample.value, at)
        if not sample.name.endswith(_COUNTED.get(kind, ())):
            return None
        added = sample.value - self._told.get(key, 0.0)
        return _document(key, _COUNT, added, at) | {"interval": seconds} if added else None

    def told(self, families: Iterable[Metric], keys: Iterable[Key]) -> None:
        """Remember that these series were taken, with the values that the families have."""
        values = {
            (sample.name, self._tags + _tags(sample.labels)): sample.value
            for family in families
            for sample in family.samples
        }
        self._told |= {key: values[key] for key in keys}


def _tags(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}:{value}" for name, value in labels.items() if value)


def _document(key: Key, kind: int, value: float, at: int) -> Document:
    name, tags = key
    points = [{"timestamp": at, "value": value}]
    return {"metric": name.removesuffix("_total"), "type": kind, "points": points, "tags": [*tags]}
