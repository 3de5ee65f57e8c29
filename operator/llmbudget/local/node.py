"""A node that runs nothing: it takes pods and says that they run.

With it the Deployments of a bare control plane roll as they do on a cluster: the pods of a new
ReplicaSet become ready, the old ones terminate and go away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import NODES, PODS

Manifest = Mapping[str, Any]

PERIOD: Final = 0.2
"""Seconds between two looks at the pods."""
_CAPACITY: Final = {"cpu": "1000", "memory": "1000Gi", "pods": "1000"}


class Node:
    """A Node object that is Ready, and what a kubelet tells the API server about its pods.

    It sends no heartbeat: the local control plane has no controller that waits for one.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    @contextlib.asynccontextmanager
    async def registered(self) -> AsyncIterator[None]:
        """Register the node as Ready; delete it at the end."""
        await self._cluster.apply({"apiVersion": "v1", "kind": "Node", **self._identity()})
        await self._cluster.apply_status(self._status())
        try:
            yield
        finally:
            with contextlib.suppress(ApiError, OSError):
                await self._cluster.delete(NODES, None, self.name)

    def _identity(self) -> dict[str, Any]:
        # Only pods that are bound here by name belong here: no scheduler may choose this node.
        return {
            "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}},
            "spec": {"unschedulable": True},
        }

    def _status(self) -> dict[str, Any]:
        ready = _condition("Ready", True, "LocalNode")
        status = {"conditions": [ready], "capacity": _CAPACITY, "allocatable": _CAPACITY}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name},
            "status": status,
        }

    async def bind(self, pod: Manifest) -> None:
        """Take a pending pod."""
        metadata = pod["metadata"]
        await self._cluster.create(
            {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
                "target": {"apiVersion": "v1", "kind": "Node", "name": self.name},
            }
        )

    async def report(self, pod: Manifest, *, ready: bool, restarts: int = 0) -> None:
        """Say that a pod runs, and whether it is ready."""
        metadata = pod["metadata"]
        await self._cluster.apply_status(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
                "status": pod_status(pod, ready=ready, restarts=restarts),
            }
        )

    async def remove(self, pod: Manifest) -> None:
        """Let a terminating pod go, now that nothing of it runs."""
        metadata = pod["metadata"]
        await self._cluster.delete(
            PODS, metadata["namespace"], metadata["name"], grace_seconds=0, uid=metadata["uid"]
        )

    async def run_pods(self, namespaces: Iterable[str]) -> None:
        """Take all pods of these namespaces and say that they are ready, until cancelled."""
        wanted = tuple(namespaces)
        while True:
            for namespace in wanted:
                pods, _ = await self._cluster.list(PODS, namespace)
                for pod in pods:
                    # Another turn follows: a pod that changed or went meanwhile is seen again.
                    with contextlib.suppress(ApiError):
                        await self._step(pod)
            await asyncio.sleep(PERIOD)

    async def _step(self, pod: Manifest) -> None:
        if pod["metadata"].get("deletionTimestamp"):
            await self.remove(pod)
        elif not pod["spec"].get("nodeName"):
            await self.bind(pod)
        elif not is_ready(pod):
            await self.report(pod, ready=True)


def pod_status(pod: Manifest, *, ready: bool, restarts: int = 0) -> dict[str, Any]:
    """Describe a running pod as a kubelet does."""
    started = pod["metadata"].get("creationTimestamp") or _now()
    containers = [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": ready,
            "started": True,
            "restartCount": restarts,
            "state": {"running": {"startedAt": started}},
        }
        for container in pod["spec"]["containers"]
    ]
    return {
        "phase": "Running",
        "startTime": started,
        "conditions": [
            _condition("Initialized", True),
            _condition("ContainersReady", ready),
            _condition("Ready", ready),
        ],
        "containerStatuses": containers,
    }


def is_ready(pod: Manifest) -> bool:
    """Tell whether a pod is reported Ready."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _condition(kind: str, value: bool, reason: str = "") -> dict[str, str]:
    return {
        "type": kind,
        "status": str(value),
        "reason": reason,
        "lastTransitionTime": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
