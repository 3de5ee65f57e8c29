"""What is reconciled: budgets in many namespaces, each with a provider, its key, and workloads."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final

from llmbudget.api.meta import API_VERSION

Manifest = dict[str, Any]
NAMESPACES: Final = 20
WITH_TARGETS: Final = 5
"""Every so many budgets, one has a workload to move."""
CAP: Final = 10**9
MODELS: Final = [
    {"name": name, "cost": {"inputPer1K": price, "outputPer1K": price}, "maxContext": 128_000}
    for name, price in (("large", "0.006"), ("medium", "0.003"), ("small", "0.0006"))
]


def namespace(number: int, prefix: str = "bench") -> str:
    """Name the namespace of a budget."""
    return f"{prefix}-{number % NAMESPACES}"


def name(number: int) -> str:
    """Name a budget."""
    return f"team-{number:05}"


def account(number: int) -> str:
    """Identify a budget."""
    return f"{namespace(number)}/{name(number)}"


def has_target(number: int) -> bool:
    """Tell whether a budget has a workload."""
    return number % WITH_TARGETS == 0


def surroundings(prefix: str = "bench") -> Iterator[Manifest]:
    """List what the namespaces have beside their budgets."""
    for number in range(NAMESPACES):
        metadata: Manifest = {"name": "keys", "namespace": namespace(number, prefix)}
        metadata |= {
            "labels": {"llmbudget.io/provider-key": "true"},
            "annotations": {"llmbudget.io/allowed-host": "127.0.0.1"},
        }
        key = base64.b64encode(b"sk-bench").decode()
        yield {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"SIM": key}}
        spec = {
            "endpoint": "http://127.0.0.1:1/v1",
            "allowPrivate": True,
            "credentials": {"secretKeyRef": {"name": "keys", "key": "SIM"}},
            "models": MODELS,
        }
        yield _resource("LLMProvider", namespace(number, prefix), "sim", spec)


def budget(number: int, prefix: str = "bench") -> Manifest:
    """Write one budget."""
    here = namespace(number, prefix)
    spec: Manifest = {
        "budget": {
            "monthlyCap": "1.00",
            "alertThresholds": [
                {"percentage": 80, "action": "notify_admin"},
                {"percentage": 90, "action": "downgrade_models"},
            ],
        },
        "providers": [{"name": "sim"}],
        "downgrade": {"ladder": ["large", "medium", "small"]},
        "consumers": [{"namespace": here, "serviceAccounts": [name(number)]}],
    }
    if has_target(number):
        selector = {"matchLabels": {"app": name(number)}}
        spec["targets"] = [{"namespace": here, "selector": selector, "env": "LLM_MODEL"}]
    return _resource("LLMBudget", here, name(number), spec)


def workload(number: int) -> Manifest:
    """Write the Deployment of one budget. No replicas: no Pods are needed to see it change."""
    labels = {"app": name(number)}
    env = [{"name": "LLM_MODEL", "value": "large"}]
    containers = [{"name": "main", "image": "registry.example/app:1", "env": env}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name(number),
            "namespace": namespace(number),
            "labels": labels,
            "annotations": {
                "llmbudget.io/allow-budget": account(number),
                "llmbudget.io/model-env": "LLM_MODEL",
            },
        },
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
    }


def foreign_secret(number: int) -> Manifest:
    """Write a Secret that is nobody's business here."""
    metadata = {"name": f"foreign-{number:06}", "namespace": "foreign"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"k": "dg=="}}


def _resource(kind: str, namespace: str, name: str, spec: Manifest) -> Manifest:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
