"""The Services that applications call, and those by which the operator finds the pods."""

from __future__ import annotations

from llmbudget.contract.config import GATEWAY_PORT
from llmbudget.decide.world import World
from llmbudget.render.deployment import pod_labels, port_name
from llmbudget.render.names import (
    Manifest,
    gateway,
    metadata,
    pods_of,
    selector,
    traffic_manager,
)


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


def traffic_service(world: World) -> Manifest | None:
    """Build the Service of all regions: a call goes to a gateway that is near, and to another one
    where there is none."""
    name = traffic_manager(world.root)
    if name is None:
        return None
    annotations = world.root.spec.global_distribution.service_annotations
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(world, name) | ({"annotations": annotations} if annotations else {}),
        "spec": {
            "selector": selector(world.root),
            "ports": [_port(port_name(world))],
            "trafficDistribution": "PreferClose",
        },
    }


def pods_service(world: World, region: str | None) -> Manifest:
    """Build the Service by which the operator finds each pod, also one that is not ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(world, pods_of(gateway(world.root, region))),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
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
