"""The children as they are: followed by watches of our own, so that drift is seen at once and
nothing has to be read again.

Kopf's watches know no label selectors, and must not read every ConfigMap of a cluster.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from llmbudget.api.meta import (
    ANNOTATION_APPLIED,
    LABEL_BUDGET,
    LABEL_BUDGET_NAMESPACE,
    LABEL_MANAGED_BY,
    MANAGED_BY,
    account_name,
)
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import (
    AUTOSCALERS,
    CLAIMS,
    CLUSTER_ROLE_BINDINGS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    ENDPOINT_SLICES,
    NETWORK_POLICIES,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Kind,
    kind_of,
)
from llmbudget.clients.watch_events import version_of
from llmbudget.reconcile.packed import Packer

Manifest = dict[str, Any]
Key = tuple[str, str, str]
Notify = Callable[[str], None]

log = logging.getLogger(__name__)

NAMESPACED: Final = (
    *(SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS, CONFIG_MAPS, CLAIMS, NETWORK_POLICIES),
    *(SERVICES, DEPLOYMENTS, AUTOSCALERS, DISRUPTION_BUDGETS),
)
_API_VERSIONS: Final = {
    kind.kind: kind.api_version for kind in (*NAMESPACED, CLUSTER_ROLE_BINDINGS, SECRETS)
}
SELECTOR: Final = f"{LABEL_MANAGED_BY}={MANAGED_BY},{LABEL_BUDGET}"
_API_SERVICE: Final = "kubernetes.io/service-name=kubernetes"
_SYNC_SECONDS: Final = 20.0
_RETRY_SECONDS: Final = 15.0
_MOST_GONE: Final = 10_000
_UNKEPT: Final = frozenset({"managedFields", "resourceVersion"})
_SAID: Final = frozenset({"apiVersion", "kind", "status"})
"""Of an object, what its place says, or nothing is compared with."""
_THEIRS: Final = "deployment.kubernetes.io/"
"""Annotations with this prefix are Kubernetes' own bookkeeping."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """An object, without its name and kind."""

    version: int
    account: str
    packed: bytes


def _comparable(manifest: Manifest) -> Manifest:
    """Keep what may be compared: neither its status nor who wrote which field, nor what counts
    changes to either."""
    metadata = {k: v for k, v in manifest["metadata"].items() if k not in _UNKEPT}
    if any(key.startswith(_THEIRS) for key in metadata.get("annotations") or ()):
        kept = {k: v for k, v in metadata["annotations"].items() if not k.startswith(_THEIRS)}
        metadata["annotations"] = kept
    return {k: v for k, v in manifest.items() if k not in _SAID} | {"metadata": metadata}


class Live:
    """All children, by kind, namespace and name; `notify` gets the account of a changed one."""

    def __init__(
        self,
        cluster: Cluster,
        notify: Notify,
        notify_all: Callable[[], None],
        *,
        clusterwide: bool = True,
        servers: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self._cluster = cluster
        self._clusterwide = clusterwide
        """Whether anything outside of the budgets' namespaces may be read."""
        self._servers = servers
        """Where the API server is, if that is not to be read."""
        self._notify = notify
        self._notify_all = notify_all
        self._objects: dict[Key, _Kept] = {}
        self._packers: dict[str, Packer] = {}
        """By kind."""
        self._of: dict[str, set[Key]] = {}
        """By root budget, so that the work for one does not grow with the others."""
        self._slices: dict[str, Manifest] = {}
        self._watches: dict[tuple[str, str | None], asyncio.Task[None]] = {}
        self._synced: dict[tuple[str, str | None], asyncio.Event] = {}
        self._forbidden: dict[tuple[str, str | None], ApiError] = {}
        self._expected: dict[Key, str] = {}
        """Digests of what is being applied."""
        self._gone: dict[Key, int] = {}
        """Versions of the last deletions: an answer that comes late must not bring a ghost back."""

    async def ready(self, namespace: str) -> None:
        """Follow a namespace, and return once all its children are known.

        Raises:
            ApiError: they can't be listed; 403 where the operator has no role there.
        """
        wanted: list[tuple[Kind, str | None]] = [(kind, namespace) for kind in NAMESPACED]
        if self._clusterwide:
            wanted += [(CLUSTER_ROLE_BINDINGS, None), (ENDPOINT_SLICES, "default")]
        keys = [self._follow(kind, where) for kind, where in wanted]
        for key in keys:
            try:
                async with asyncio.timeout(_SYNC_SECONDS):
                    await self._synced[key].wait()
            except TimeoutError:
                raise ApiError(0, "Timeout", f"listing {key[0]} takes too long") from None
            if key in self._forbidden:
                raise self._forbidden[key]

    def get(self, manifest: Manifest) -> Manifest | None:
        """Find the live object of a manifest."""
        key = _key(manifest)
        return self._unpacked(key) if key in self._objects else None

    def put(self, manifest: Manifest) -> None:
        """Take over what the API server answered, before the watch tells it, but nothing older
        than what is known."""
        key, version = _key(manifest), version_of(manifest)
        known = self._objects.get(key)
        if version and version <= self._gone.get(key, -1):
            return
        if known is None or version >= known.version:
            self._forget(key)
            account = sys.intern(account_of(manifest) or "")
            packed = self._packer(manifest["kind"]).pack(_comparable(manifest))
            self._objects[key] = _Kept(version, account, packed)
            self._of.setdefault(account, set()).add(key)

    @contextmanager
    def expecting(self, manifest: Manifest) -> Iterator[None]:
        """While something is being applied, it is no news when its watch tells of it first."""
        key = _key(manifest)
        self._expected[key] = _applied(manifest)
        try:
            yield
        finally:
            del self._expected[key]

    def drop(self, manifest: Manifest) -> None:
        """Forget what was deleted."""
        self._forget(_key(manifest))

    def of(self, account: str, beside: Collection[tuple[str, str]] = ()) -> list[Manifest]:
        """List the children of a root budget, beside those of these kinds and names."""
        keys = [key for key in sorted(self._of.get(account, ())) if (key[0], key[2]) not in beside]
        return [self._unpacked(key) for key in keys]

    def _unpacked(self, key: Key) -> Manifest:
        kept, kind = self._objects[key], key[0]
        found = self._packer(kind).unpack(kept.packed)
        found["metadata"]["resourceVersion"] = str(kept.version)
        return {"apiVersion": _API_VERSIONS[kind], "kind": kind} | found

    def _packer(self, kind: str) -> Packer:
        found = self._packers.get(kind)
        if found is None:
            # No Secret's text outlives the Secret.
            found = self._packers[kind] = Packer(alike=kind != SECRETS.kind)
        return found

    def _forget(self, key: Key) -> None:
        known = self._objects.pop(key, None)
        if known is None:
            return
        self._of[known.account].discard(key)
        if not self._of[known.account]:
            del self._of[known.account]

    def api_servers(self) -> tuple[tuple[str, int], ...]:
        """List addresses and ports of the API server, sorted."""
        found = set(self._servers) or {
            (address, port["port"])
            for item in self._slices.values()
            for endpoint in item.get("endpoints") or ()
            for address in endpoint["addresses"]
            for port in item.get("ports") or ()
        }
        return tuple(sorted(found))

    def _bury(self, item: Manifest) -> None:
        self.drop(item)
        self._gone[_key(item)] = version_of(item)
        if len(self._gone) > _MOST_GONE:
            del self._gone[next(iter(self._gone))]

    def keep(self, namespaces: Collection[str]) -> None:
        """End the watches of all other namespaces, and forget what is there."""
        over = [key for key in self._watches if key[1] not in (None, "default", *namespaces)]
        for key in over:
            self._watches.pop(key).cancel()
            self._synced.pop(key, None)
            self._forbidden.pop(key, None)
        left = {namespace for _, namespace in over}
        for place in [key for key in self._objects if key[1] in left]:
            self._forget(place)

    async def close(self) -> None:
        """End all watches."""
        for task in self._watches.values():
            task.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)

    def _follow(self, kind: Kind, namespace: str | None) -> tuple[str, str | None]:
        key = (kind.kind, namespace)
        if key not in self._watches:
            self._synced[key] = asyncio.Event()
            self._watches[key] = asyncio.create_task(self._watch(kind, namespace))
            self._watches[key].add_done_callback(_end_with)
        return key

    async def _watch(self, kind: Kind, namespace: str | None) -> None:
        key = (kind.kind, namespace)
        selector = _API_SERVICE if kind is ENDPOINT_SLICES else SELECTOR
        missing: set[Key] = set()
        """What was known before a gap, and has not been listed since."""
        while True:
            try:
                async for event in self._cluster.watch(kind, namespace, label_selector=selector):
                    if event.type == "SYNCED":
                        self._lose(kind, missing)
                        missing.clear()
                        self._forbidden.pop(key, None)
                        self._synced[key].set()
                        continue
                    item = {"apiVersion": kind.api_version, "kind": kind.kind} | event.object
                    missing.discard(_key(item))
                    account = self._take(kind, item, gone=event.type == "DELETED")
                    # What there is at first is what everybody waits for, and no news.
                    if self._synced[key].is_set():
                        self._tell(kind, account)
            except ApiError as error:
                self._forbidden[key] = error
                self._synced[key].set()
                fields = {"kind": kind.kind, "namespace": namespace}
                log.warning("watch: %s", error, extra={"fields": fields})
            await asyncio.sleep(_RETRY_SECONDS)
            missing = self._known(kind, namespace)

    def _known(self, kind: Kind, namespace: str | None) -> set[Key]:
        """List what one watch has told of."""
        if kind is ENDPOINT_SLICES:
            return {(kind.kind, namespace or "", name) for name in self._slices}
        here = (key for key in self._objects if key[0] == kind.kind)
        return {key for key in here if namespace in (None, key[1])}

    def _lose(self, kind: Kind, missing: Collection[Key]) -> None:
        """Forget what went while its watch was not allowed to look."""
        for key in missing:
            known = self._objects.get(key)
            self._forget(key)
            if kind is ENDPOINT_SLICES:
                self._slices.pop(key[2], None)
            self._tell(kind, None if known is None else known.account)

    def _tell(self, kind: Kind, account: str | None) -> None:
        if kind is ENDPOINT_SLICES:
            self._notify_all()
        elif account is not None:
            self._notify(account)

    def _take(self, kind: Kind, item: Manifest, *, gone: bool) -> str | None:
        """Take over what a watch says; return the account that it is news for."""
        if kind is ENDPOINT_SLICES:
            if gone:
                self._slices.pop(item["metadata"]["name"], None)
            else:
                self._slices[item["metadata"]["name"]] = item
            return None
        key = _key(item)
        before = self._objects.get(key)
        if gone:
            self._bury(item)
            return before.account if before is not None else account_of(item)
        if before is not None and before.version >= version_of(item):
            return None
        self.put(item)
        if self._expected.get(key) == _applied(item):
            return None
        now = self._objects.get(key)
        if before is not None and now is not None and now.packed == before.packed:
            # A status, such as a Deployment's, is no drift.
            return None
        return account_of(item)


def _applied(item: Manifest) -> str:
    """Read the digest of what was applied."""
    return str((item["metadata"].get("annotations") or {}).get(ANNOTATION_APPLIED, ""))


def _end_with(task: asyncio.Task[None]) -> None:
    """A watch that dies takes the process along: an operator that sees half is none."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a watch ended", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


def _key(item: Manifest) -> Key:
    metadata = item["metadata"]
    # Names are the same again and again, each time in a string of its own.
    namespace, name = metadata.get("namespace", ""), metadata["name"]
    return kind_of(item).kind, sys.intern(namespace), sys.intern(name)


def account_of(item: Manifest) -> str | None:
    """Name the root budget that a child says it belongs to."""
    labels = item["metadata"].get("labels") or {}
    name, namespace = labels.get(LABEL_BUDGET), labels.get(LABEL_BUDGET_NAMESPACE)
    return account_name(namespace, name) if name and namespace else None
