"""The claim of the ledger's volume: it has no owner, since a month's money outlives its budget."""

from __future__ import annotations

from llmbudget.api.gateway_spec import SqliteLedger
from llmbudget.decide.world import World
from llmbudget.render.names import Manifest, labels, ledger_claim


def claim(world: World) -> Manifest:
    """Build the PersistentVolumeClaim."""
    sqlite = world.root.spec.ledger.sqlite or SqliteLedger()
    spec: Manifest = {
        "accessModes": ["ReadWriteOncePod"],
        "resources": {"requests": {"storage": sqlite.storage}},
    }
    if sqlite.storage_class_name is not None:
        spec["storageClassName"] = sqlite.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": ledger_claim(world.root),
            "namespace": world.root.namespace,
            "labels": labels(world.root),
        },
        "spec": spec,
    }
