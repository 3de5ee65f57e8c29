"""Children, applied: only what differs is written, and what is no longer wanted is deleted."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from llmbudget.api.gateway_spec import SecretDelivery
from llmbudget.api.meta import ANNOTATION_APPLIED, API_VERSION, LABEL_MANAGED_BY, MANAGED_BY
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import BUDGETS, SECRETS, kind_of
from llmbudget.decide.world import Budget
from llmbudget.reconcile.live import Live, account_of
from llmbudget.render import names

Manifest = dict[str, Any]

log = logging.getLogger(__name__)

_KEPT: Final = frozenset({"PersistentVolumeClaim"})
"""Kinds that are never deleted: the ledger outlives its budget."""
_ADOPTED: Final = frozenset({"ClusterRoleBinding"})
"""Kinds of which whatever has such a name is a child."""
HANDOVER: Final = "llmbudget-handover"
"""Field manager that holds a Deployment's replicas until its autoscaler does."""


class OwnerGone(Exception):
    """The budget was deleted, and no watch has told."""


class _Taken(Exception):
    """An object that is not ours has the name of a child."""


@dataclass(slots=True)
class Outcome:
    """What became of a root's children."""

    written: int = 0
    """Objects that were written or deleted."""
    taken: str | None = None
    """Whose name is another's object's, and what to do."""


async def apply_children(
    cluster: Cluster, live: Live, root: Budget, wanted: Iterable[Manifest]
) -> Outcome:
    """Bring the cluster to what is wanted. Where a name is taken, no child after it is begun, but
    those that are there follow their budget.

    Raises:
        ApiError: the API server refused one of them.
        OwnerGone: the budget is no more.
    """
    outcome = Outcome()
    keep: set[tuple[str, str]] = set()
    await _look_for_secrets(cluster, live, root)
    for manifest in map(_stamped, wanted):
        keep.add((manifest["kind"], manifest["metadata"]["name"]))
        found = live.get(manifest)
        if found is None and outcome.taken is not None:
            continue
        if found is not None and manifest["kind"] == "PersistentVolumeClaim":
            manifest = _adopted(manifest, found)
        if found is not None and agrees(manifest, found):
            continue
        if not outcome.written:
            await _check_owner(cluster, root)
        try:
            with live.expecting(manifest):
                live.put(await _written(cluster, manifest, found, root))
        except _Taken:
            outcome.taken = (
                f"There is a {manifest['kind']} {manifest['metadata']['name']} already that is not"
                " this budget's: remove it, or name the budget differently."
            )
        else:
            outcome.written += 1
            log.info("applied", extra={"fields": _fields(manifest)})
    outcome.written += await _prune(cluster, live, root, keep)
    return outcome


async def _check_owner(cluster: Cluster, root: Budget) -> None:
    """Make sure that the budget still exists: what is written for one that doesn't is collected
    as garbage, which would be drift to be put back, for ever."""
    found = await cluster.get_metadata(BUDGETS, root.namespace, root.name)
    if found is None or found["metadata"]["uid"] != root.uid:
        raise OwnerGone


async def _written(
    cluster: Cluster, manifest: Manifest, found: Manifest | None, root: Budget
) -> Manifest:
    """Write a child; return it as it is then.

    Raises:
        ApiError.
        _Taken: it would take another's place.
    """
    kind = manifest["kind"]
    if found is not None:
        if kind in _KEPT and not _ours(found, kind, root):
            raise _Taken
        await _hand_over_replicas(cluster, manifest, found)
    elif kind not in _ADOPTED:
        try:
            return await cluster.apply_new(manifest)
        except ApiError as error:
            if error.status != 409:
                raise
        metadata = manifest["metadata"]
        there = await cluster.get_metadata(
            kind_of(manifest), metadata.get("namespace"), metadata["name"]
        )
        if there is not None and not _ours(there, kind, root):
            raise _Taken
    return await cluster.apply(manifest)


async def _look_for_secrets(cluster: Cluster, live: Live, root: Budget) -> None:
    """Read the rendered Secrets by their names: Secrets are not followed. Where there should be
    none, its metadata will do; a certificate that is wanted was looked at when it was chosen."""
    deployment = root.spec.deployment
    own = not deployment.tls.plain_http and deployment.tls.secret_name is None
    name = names.key_secret(root)
    wanted = deployment.secret_delivery is SecretDelivery.ENV
    read = cluster.get if wanted else cluster.get_metadata
    look_at_secret(live, root, name, await read(SECRETS, root.namespace, name))
    name = names.serving_secret(root)
    # The user's own is theirs now, whoever made it.
    if not own and name != deployment.tls.secret_name:
        found = await cluster.get_metadata(SECRETS, root.namespace, name)
        look_at_secret(live, root, name, found)


def look_at_secret(live: Live, root: Budget, name: str, found: Manifest | None) -> None:
    """Take over what a Secret is now, where it is the budget's."""
    if found is not None and _owned(found, root):
        live.put(found | {"apiVersion": "v1", "kind": "Secret"})
    else:
        metadata = {"namespace": root.namespace, "name": name}
        live.drop({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})


def _stamped(manifest: Manifest) -> Manifest:
    """Note what was applied, so that a field that is no longer wanted is a difference too."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), ANNOTATION_APPLIED: digest}
    return manifest | {"metadata": metadata | {"annotations": annotations}}


async def _prune(cluster: Cluster, live: Live, root: Budget, keep: set[tuple[str, str]]) -> int:
    unwanted = [
        item
        for item in live.of(root.account, beside=keep)
        if item["kind"] not in _KEPT
        and (item["kind"] == "ClusterRoleBinding" or _owned(item, root))
    ]
    for item in unwanted:
        metadata = item["metadata"]
        await cluster.delete(
            kind_of(item), metadata.get("namespace"), metadata["name"], uid=metadata.get("uid")
        )
        live.drop(item)
        log.info("deleted", extra={"fields": _fields(item)})
    return len(unwanted)


def _owned(item: Manifest, root: Budget) -> bool:
    owners = item["metadata"].get("ownerReferences") or ()
    return any(o["apiVersion"] == API_VERSION and o["uid"] == root.uid for o in owners)


def _ours(item: Manifest, kind: str, root: Budget) -> bool:
    """Tell whose an object is: by its owner, or a claim, which has none and outlives its budget, by
    its labels."""
    if kind in _KEPT:
        managed = (item["metadata"].get("labels") or {}).get(LABEL_MANAGED_BY) == MANAGED_BY
        return managed and account_of(item) == root.account
    return _owned(item, root)


def _adopted(claim: Manifest, found: Manifest) -> Manifest:
    """Keep what can't be changed of a claim: its size may grow, but not shrink."""
    kept = {
        key: found["spec"][key]
        for key in ("accessModes", "storageClassName")
        if key in found["spec"]
    }
    asked, has = (_storage(one["spec"]) for one in (claim, found))
    if asked is not None and has is not None and parse_quantity(asked) < parse_quantity(has):
        kept["resources"] = {"requests": {"storage": has}}
    return claim | {"spec": claim["spec"] | kept}


def _storage(spec: Manifest) -> str | None:
    size: str | None = spec.get("resources", {}).get("requests", {}).get("storage")
    return size


async def _hand_over_replicas(cluster: Cluster, manifest: Manifest, found: Manifest) -> None:
    """Before we stop naming a Deployment's replicas, let another manager own them: a field that
    nobody owns falls back to 1."""
    if manifest["kind"] != "Deployment" or "replicas" in manifest["spec"]:
        return
    partial = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {key: manifest["metadata"][key] for key in ("name", "namespace")},
        "spec": {"replicas": found["spec"].get("replicas", 1)},
    }
    try:
        await cluster.apply(partial, force=False, field_manager=HANDOVER)
    except ApiError as error:
        # Another manager has other numbers already: that is what was wanted.
        if error.status != 409:
            raise


def agrees(wanted: object, found: object) -> bool:
    """Tell whether a live value has all that is wanted of it.

    The API server adds defaults, leaves out what is empty, and writes quantities its own way; all
    of these agree.
    """
    if found is None:
        # Neither False nor 0 is the default everywhere: some switches are on unless they are off.
        return wanted in ({}, [], None, "")
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            agrees(value, found.get(key)) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(agrees(one, other) for one, other in zip(wanted, found, strict=True))
        )
    if wanted == found:
        return True
    return isinstance(wanted, str) and isinstance(found, str) and _same_quantity(wanted, found)


def _same_quantity(one: str, other: str) -> bool:
    if not (one[:1].isdigit() and other[:1].isdigit()):
        return False
    try:
        first: Decimal = parse_quantity(one)
        second: Decimal = parse_quantity(other)
    except ValueError:
        return False
    return first == second


def _fields(manifest: Manifest) -> dict[str, str]:
    metadata = manifest["metadata"]
    return {
        "kind": manifest["kind"],
        "namespace": metadata.get("namespace", ""),
        "name": metadata["name"],
    }
