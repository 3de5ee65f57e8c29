"""Watch events, and what is remembered of objects so that a gap in a watch loses none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

Manifest = dict[str, Any]
_KEPT: Final = ("namespace", "name", "uid", "resourceVersion", "labels")


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change, or SYNCED once all objects that were there have been reported as ADDED.

    After a gap that the server can't bridge, objects that changed come as MODIFIED, and those that
    are gone come as DELETED with what was last known of their identity and labels.
    """

    type: str
    """ADDED, MODIFIED, DELETED or SYNCED."""
    object: Manifest


class Known:
    """Which objects a watch has reported, in which version."""

    def __init__(self) -> None:
        self._metadata: dict[tuple[str, str], Manifest] = {}

    def relisted(self, items: Sequence[Manifest]) -> list[WatchEvent]:
        """Tell what a list says beyond what is known, and take it over."""
        listed = {_key(item): item for item in items}
        before, self._metadata = (
            self._metadata,
            {key: _identity(item) for key, item in listed.items()},
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
            self._metadata[_key(event.object)] = _identity(event.object)


def _identity(item: Manifest) -> Manifest:
    """Keep little: this is held for every object that is watched."""
    metadata = item["metadata"]
    return {key: metadata[key] for key in _KEPT if key in metadata}


def _key(item: Manifest) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
