"""What the gateway may do in the cluster: read its one ConfigMap, and have tokens reviewed."""

from __future__ import annotations

from typing import Final

from llmbudget.decide.world import World
from llmbudget.render.names import Manifest, auth_delegator, gateway, labels, metadata

_GROUP: Final = "rbac.authorization.k8s.io"


def service_account(world: World) -> Manifest:
    """Build the ServiceAccount; its token is mounted where the pod asks for it."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(world, gateway(world.root)),
        "automountServiceAccountToken": False,
    }


def role(world: World) -> Manifest:
    """Build the Role: one ConfigMap, by name."""
    name = gateway(world.root)
    return {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "Role",
        "metadata": metadata(world, name),
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": [name],
                "verbs": ["get", "list", "watch"],
            }
        ],
    }


def role_binding(world: World) -> Manifest:
    """Bind the Role to the ServiceAccount."""
    name = gateway(world.root)
    return {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "RoleBinding",
        "metadata": metadata(world, name),
        "roleRef": {"apiGroup": _GROUP, "kind": "Role", "name": name},
        "subjects": [_subject(world)],
    }


def cluster_role_binding(world: World) -> Manifest:
    """Let the gateway review tokens and access. It can't have a namespaced owner: it is found and
    swept by its labels."""
    return {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": auth_delegator(world.root), "labels": labels(world.root)},
        "roleRef": {"apiGroup": _GROUP, "kind": "ClusterRole", "name": "system:auth-delegator"},
        "subjects": [_subject(world)],
    }


def _subject(world: World) -> Manifest:
    root = world.root
    return {"kind": "ServiceAccount", "name": gateway(root), "namespace": root.namespace}
