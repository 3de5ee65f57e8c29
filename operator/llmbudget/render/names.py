"""Names, labels and owners that all children share."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from llmbudget.api.meta import (
    API_VERSION,
    LABEL_BUDGET,
    LABEL_BUDGET_NAMESPACE,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    MANAGED_BY,
)
from llmbudget.decide.world import Budget, World

Manifest = dict[str, Any]

_MOST: Final = 63


def gateway(budget: Budget, region: str | None = None) -> str:
    """Name everything of the gateway: `NAME-gateway`, `NAME-gateway-REGION`."""
    return _short(f"{budget.name}-gateway" + (f"-{region}" if region else ""))


def _short(name: str) -> str:
    """Cut a name to what a Service's may have, and keep it unique."""
    if len(name) <= _MOST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _MOST - 9]}-{digest}"


def pods_of(gateway: str) -> str:
    """Name the Service of all pods of a gateway, by which the operator finds them."""
    return _short(f"{gateway}-pods")


def traffic_manager(budget: Budget) -> str | None:
    """Name the Service that sends calls to the nearest region; None: there is none."""
    distribution = budget.spec.global_distribution
    if not (distribution.traffic_manager and distribution.regions):
        return None
    return _short(f"{budget.name}-{distribution.traffic_manager}")


def services(world: World) -> tuple[str, ...]:
    """Name the Services that callers use: one a region, and the one before all of them."""
    each = [gateway(world.root, region) for region in regions(world)]
    before = traffic_manager(world.root)
    return (*each, before) if before else tuple(each)


def ledger_claim(budget: Budget) -> str:
    """Name the claim of the ledger's volume."""
    return f"{budget.name}-ledger"


def key_secret(budget: Budget) -> str:
    """Name the Secret that delivers keys by the environment."""
    return f"{budget.name}-llm-provider-secrets"


def serving_secret(budget: Budget) -> str:
    """Name the Secret with the certificate by the operator's authority."""
    return f"{budget.name}-gateway-tls"


def ca_bundle(budget: Budget) -> str:
    """Name the ConfigMap with the authorities that clients of the gateway trust."""
    return f"{budget.name}-gateway-ca"


def auth_delegator(budget: Budget) -> str:
    """Name the cluster-wide binding that lets the gateway review tokens."""
    return f"llmbudget:{budget.namespace}:{budget.name}"


def labels(budget: Budget) -> dict[str, str]:
    """Labels of every child."""
    return {
        LABEL_NAME: "llmbudget-gateway",
        LABEL_COMPONENT: "gateway",
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_BUDGET: budget.name,
        LABEL_BUDGET_NAMESPACE: budget.namespace,
    }


def selector(budget: Budget) -> dict[str, str]:
    """Labels that select the gateway's pods."""
    return {LABEL_NAME: "llmbudget-gateway", LABEL_BUDGET: budget.name}


def metadata(world: World, name: str) -> Manifest:
    """Metadata of a child that lives and dies with its budget."""
    root = world.root
    owner = {
        "apiVersion": API_VERSION,
        "kind": "LLMBudget",
        "name": root.name,
        "uid": root.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": root.namespace,
        "labels": labels(root),
        "ownerReferences": [owner],
    }


def regions(world: World) -> tuple[str | None, ...]:
    """The regions that have a gateway; one without a name where none are given."""
    return tuple(region.name for region in world.root.spec.global_distribution.regions) or (None,)
