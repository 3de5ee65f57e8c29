"""The operator as a real process with its own ServiceAccount's rights, on the real API server."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from llmbudget.api.meta import API_VERSION
from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, DEPLOYMENTS, PROVIDERS, Kind
from llmbudget.local.stage import Stage

Manifest = dict[str, Any]
GATEWAY = "team-a-gateway"
MODELS = [
    {
        "name": name,
        "cost": {"inputPer1K": price, "outputPer1K": price},
        "maxContext": 128_000,
        "latencyMs": 500,
    }
    for name, price in (("large", "0.006"), ("small", "0.0006"))
]


def secret(namespace: str, name: str = "keys", **changes: Any) -> Manifest:
    key = base64.b64encode(b"sk-canary").decode()
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": {"llmbudget.io/provider-key": "true"},
        "annotations": {"llmbudget.io/allowed-host": "127.0.0.1"},
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata | changes,
        "data": {"SIM": key},
    }


def provider(namespace: str, endpoint: str = "http://127.0.0.1:1/v1", **spec: Any) -> Manifest:
    written = {
        "endpoint": endpoint,
        "allowPrivate": True,
        "credentials": {"secretKeyRef": {"name": "keys", "key": "SIM"}},
        "models": MODELS,
    }
    return resource("LLMProvider", namespace, "sim", written | spec)


def budget(namespace: str, name: str = "team-a", **spec: Any) -> Manifest:
    written = {
        "budget": {"monthlyCap": "1.00"},
        "providers": [{"name": "sim"}],
        "consumers": [{"namespace": namespace, "serviceAccounts": ["default"]}],
    }
    return resource("LLMBudget", namespace, name, written | spec)


def resource(kind: str, namespace: str, name: str, spec: Manifest) -> Manifest:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


async def create(cluster: Cluster, *manifests: Manifest) -> None:
    """Write as a user would: with another field manager than the operator's."""
    for manifest in manifests:
        await cluster.apply(manifest, field_manager="test")


async def until(what: str, ask: Callable[[], Awaitable[Any]], seconds: float = 40) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    answer = None
    while time.monotonic() < deadline:
        answer = await ask()
        if answer:
            return answer
        await asyncio.sleep(0.1)
    raise AssertionError(f"{what}: not after {seconds} s; last answer: {answer!r}")


async def status(cluster: Cluster, namespace: str, name: str = "team-a") -> Manifest:
    found = await cluster.get(BUDGETS, namespace, name)
    return (found or {}).get("status") or {}


def condition(of: Manifest, kind: str) -> Manifest:
    return next((c for c in of.get("conditions") or () if c["type"] == kind), {})


async def until_condition(
    cluster: Cluster,
    namespace: str,
    kind: str,
    value: str,
    reason: str,
    *,
    name: str = "team-a",
    of: Kind = BUDGETS,
    says: str = "",
) -> Manifest:
    """Wait for a condition with a reason and a part of its message; return it."""

    async def ask() -> Manifest | None:
        found = await cluster.get(of, namespace, name)
        now = condition((found or {}).get("status") or {}, kind)
        agrees = now.get("status") == value and now.get("reason") == reason
        agrees = agrees and says in now.get("message", "")
        return now if agrees else None

    try:
        found: Manifest = await until(f"{kind}={value} ({reason})", ask)
    except AssertionError as error:
        now = await cluster.get(of, namespace, name)
        raise AssertionError(
            f"{error}\n{json.dumps((now or {}).get('status'), indent=1)}"
        ) from None
    return found


async def until_ready(cluster: Cluster, namespace: str) -> None:
    await until_condition(cluster, namespace, "Ready", "True", "Reconciled")


async def deployment(cluster: Cluster, namespace: str, name: str = GATEWAY) -> Manifest | None:
    return await cluster.get(DEPLOYMENTS, namespace, name)


async def start_operator(stage: Stage) -> asyncio.subprocess.Process:
    return await stage.operator(allow_private=["127.0.0.1"])


__all__ = ["PROVIDERS"]
