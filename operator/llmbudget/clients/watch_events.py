"""Watch events, and what is remembered of objects so that a gap in a watch loses none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change, or SYNCED once all objects that were there have been reported as ADDED.

    After a gap that the server can't bridge, objects that changed come as MODIFIED, and those that
    are gone come as DELETED with what was last known of their metadata.
    """

    type: str
    """ADDED, MODIFIED, DELETED or SYNCED."""
    object: Manifest


class Known:
    """The metadata of the objects that a watch has reported."""

    def __init__(self) -> None:
        self._metadata: dict[tuple[str, str], Manifest] = {}

    def relisted(self, items: Sequence[Manifest]) -> list[WatchEvent]:
        """Tell what a list says beyond what is known, and take it over."""
        listed = {_key(item): item for item in items}
        before, self._metadata = (
            self._metadata,
            {key: item["metadata"] for key, item in listed.items()},
        )
        gone = [key for key in before if key not in listed]
        events = [WatchEvent("DELETED", {"metadata": before[key]}) for key in gone]
        for key, item in listed.items():
            old = before.get(key)
            if old is None:
                events.append(WatchEvent("ADDED", item))
            elif old["resourceVersion"] != item["metadata"]["resourceVersion"]:
                events.append(WatchEvent("MODIFIED", item))
        return events

    def remember(self, event: WatchEvent) -> None:
        """Take over what a watch says."""
        if event.type == "DELETED":
            self._metadata.pop(_key(event.object), None)
        else:
            self._metadata[_key(event.object)] = event.object["metadata"]


def _key(item: Manifest) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
