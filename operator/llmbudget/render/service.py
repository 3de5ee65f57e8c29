"""The Services that applications call."""

from __future__ import annotations

from llmbudget.contract.config import GATEWAY_PORT
from llmbudget.decide.world import World
from llmbudget.render.deployment import pod_labels, port_name
from llmbudget.render.names import Manifest, gateway, metadata


def service(world: World, region: str | None) -> Manifest:
    """Build the Service of one region."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(world, gateway(world.root, region)),
        "spec": {
            "selector": pod_labels(world, region),
            "ports": [_port(port_name(world))],
        },
    }


def _port(name: str) -> Manifest:
    return {
        "name": name,
        "appProtocol": name,
        "port": GATEWAY_PORT,
        # By number: pods of before a change between the two have a port of another name.
        "targetPort": GATEWAY_PORT,
        "protocol": "TCP",
    }
