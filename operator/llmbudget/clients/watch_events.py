"""Watch events, and what is remembered of objects so that a gap in a watch loses none."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change, or SYNCED once all objects that were there have been reported as ADDED.

    After a gap that the server can't bridge, objects that changed come as MODIFIED, and those that
    are gone come as DELETED with their names and the version that was known last.
    """

    type: str
    """ADDED, MODIFIED, DELETED or SYNCED."""
    object: Manifest


Place = tuple[str, str]
"""Namespace and name."""


def version_of(item: Mapping[str, Any]) -> int:
    """Tell the version that the API server gave an object; 0: it never did."""
    return int(item["metadata"].get("resourceVersion", 0))


class Known:
    """Which objects a watch has reported, in which version: little, since it is kept of each."""

    def __init__(self) -> None:
        self._versions: dict[Place, int] = {}

    def told(self, items: Sequence[Manifest], listed: set[Place]) -> Iterator[WatchEvent]:
        """Tell what a page of a list says beyond what is known, and take it over; `listed` takes up
        what it names."""
        for item in items:
            key, version = _key(item), version_of(item)
            listed.add(key)
            before = self._versions.get(key)
            self._versions[key] = version
            if before != version:
                yield WatchEvent("ADDED" if before is None else "MODIFIED", item)

    def gone(self, listed: Collection[Place]) -> Iterator[WatchEvent]:
        """Tell what is known and was not listed, and forget it."""
        for key in [key for key in self._versions if key not in listed]:
            version = self._versions.pop(key)
            named = {"namespace": key[0]} if key[0] else {}
            metadata = named | {"name": key[1], "resourceVersion": str(version)}
            yield WatchEvent("DELETED", {"metadata": metadata})

    def remember(self, event: WatchEvent) -> None:
        """Take over what a watch says."""
        if event.type == "DELETED":
            self._versions.pop(_key(event.object), None)
        else:
            self._versions[_key(event.object)] = version_of(event.object)


def _key(item: Manifest) -> Place:
    metadata = item["metadata"]
    return sys.intern(metadata.get("namespace", "")), sys.intern(metadata["name"])
