"""Autoscaling and disruption budget, where high availability is on."""

from __future__ import annotations

from llmbudget.decide.world import World
from llmbudget.render.deployment import pod_labels
from llmbudget.render.names import Manifest, gateway, metadata


def autoscaler(world: World, region: str | None) -> Manifest:
    """Build the HorizontalPodAutoscaler of one region."""
    name = gateway(world.root, region)
    scaling = world.root.spec.high_availability.auto_scaling
    target = {"type": "Utilization", "averageUtilization": scaling.cpu_threshold}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(world, name),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    }


def disruption_budget(world: World, region: str | None) -> Manifest:
    """Build the PodDisruptionBudget of one region: one pod at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(world, gateway(world.root, region)),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": pod_labels(world, region)},
        },
    }
