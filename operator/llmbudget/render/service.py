"""The Services that applications call."""

from __future__ import annotations

from llmbudget.contract.config import GATEWAY_PORT
from llmbudget.decide.world import World
from llmbudget.render.deployment import pod_labels
from llmbudget.render.names import Manifest, gateway, metadata


def service(world: World, region: str | None) -> Manifest:
    """Build the Service of one region."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(world, gateway(world.root, region)),
        "spec": {
            "selector": pod_labels(world, region),
            "ports": [
                {"name": "http", "port": GATEWAY_PORT, "targetPort": "http", "protocol": "TCP"}
            ],
        },
    }
