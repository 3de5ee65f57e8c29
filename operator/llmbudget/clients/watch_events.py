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
    are gone come as DELETED with what was last known of their identity.
    """

    type: str
    """ADDED, MODIFIED, DELETED or SYNCED."""
    object: Manifest


class Known:
    """Which objects a watch has reported, in which version."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], tuple[str, str]] = {}
        """Uid and version by namespace and name: little, since it is kept of every object."""

    def relisted(self, items: Sequence[Manifest]) -> list[WatchEvent]:
        """Tell what a list says beyond what is known, and take it over."""
        listed = {_key(item): item for item in items}
        before = self._versions
        self._versions = {key: _version(item) for key, item in listed.items()}
        events = [
            WatchEvent("DELETED", {"metadata": _identity(key, version)})
            for key, version in before.items()
            if key not in listed
        ]
        for key, item in listed.items():
            old = before.get(key)
            if old is None:
                events.append(WatchEvent("ADDED", item))
            elif old[1] != item["metadata"]["resourceVersion"]:
                events.append(WatchEvent("MODIFIED", item))
        return events

    def remember(self, event: WatchEvent) -> None:
        """Take over what a watch says."""
        if event.type == "DELETED":
            self._versions.pop(_key(event.object), None)
        else:
            self._versions[_key(event.object)] = _version(event.object)


def _version(item: Manifest) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("uid", ""), metadata["resourceVersion"]


def _identity(key: tuple[str, str], version: tuple[str, str]) -> Manifest:
    (namespace, name), (uid, resource_version) = key, version
    found = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": resource_version}
    return {field: value for field, value in found.items() if value}


def _key(item: Manifest) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
