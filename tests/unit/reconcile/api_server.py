"""An API server in memory, as far as server-side apply and delete go: for apply.py's tests."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from llmbudget.api.meta import FIELD_MANAGER
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.connection import Connection
from llmbudget.clients.kinds import BUDGETS, Kind
from llmbudget.reconcile.live import Live

Manifest = dict[str, Any]
Key = tuple[str, str]


class ApiServer(Cluster):
    """Objects by kind and name. What other managers, or nobody, wrote is kept apart from ours."""

    def __init__(self) -> None:
        super().__init__(Connection.in_cluster(Path("/nowhere")))
        self.ours: dict[Key, Manifest] = {}
        self.others: dict[Key, Manifest] = {}
        self.applied: list[Key] = []
        self.deleted: list[tuple[str, str, str | None]] = []
        self.handed_over: list[Manifest] = []
        self.refusing: dict[str, ApiError] = {}
        """By kind, or by another field manager."""
        self.budget: str | None = "uid-6"
        """Uid of the budget; None: it is gone."""
        self._version = 0

    def object(self, *key: str) -> Manifest:
        """An object as it is."""
        kind, name = key
        server = {"metadata": {"uid": f"uid-of-{name}", "resourceVersion": str(self._version)}}
        return _merged(_merged(self.others.get((kind, name), {}), self.ours[kind, name]), server)

    async def apply(
        self, manifest: Manifest, *, force: bool = True, field_manager: str = FIELD_MANAGER
    ) -> Manifest:
        key = manifest["kind"], manifest["metadata"]["name"]
        for refused in (key[0], field_manager):
            if refused in self.refusing:
                raise self.refusing[refused]
        if field_manager == FIELD_MANAGER:
            assert force
            if manifest["metadata"].get("resourceVersion"):
                if key in self.ours:
                    raise ApiError(409, "Conflict", "the object has been modified")
                metadata = {k: v for k, v in manifest["metadata"].items() if k != "resourceVersion"}
                manifest = manifest | {"metadata": metadata}
            self.applied.append(key)
            # Fields of ours that are not named any more are gone.
            self.ours[key] = copy.deepcopy(manifest)
        else:
            assert not force
            self.handed_over.append(manifest)
            self.others[key] = _merged(self.others.get(key, {}), manifest)
        self._version += 1
        return self.object(*key)

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        return self.object(kind.kind, name) if (kind.kind, name) in self.ours else None

    async def get_metadata(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        if kind is BUDGETS:
            return {"metadata": {"uid": self.budget}} if self.budget else None
        found = await self.get(kind, namespace, name)
        return {"metadata": found["metadata"]} if found else None

    async def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        self.deleted.append((kind.kind, name, uid))
        self.ours.pop((kind.kind, name), None)

    def live(self) -> Live:
        """What is known when children are applied: what watches tell, and the certificate; other
        Secrets nobody looks at before."""
        live = Live(self, lambda _: None, lambda: None)
        for key in self.ours:
            if key[0] != "Secret" or key[1].endswith("-tls"):
                live.put(self.object(*key))
        return live


def _merged(one: Manifest, other: Manifest) -> Manifest:
    merged = copy.deepcopy(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else copy.deepcopy(value)
    return merged
