"""The operator as a real process with its own ServiceAccount's rights, on the real API server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from llmbudget.api.meta import API_VERSION
from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, PROVIDERS, Kind
from llmbudget.ledger.interface import Entry
from llmbudget.ledger.sqlite.rows import Rows
from llmbudget.ledger.sqlite.schema import FILE_NAME, connect_reading
from llmbudget.local.bill import Bill
from llmbudget.local.stage import Stage

Manifest = dict[str, Any]
GATEWAY = "team-a-gateway"
READY = ("Ready", "True", "Reconciled")
WAITING = ("Ready", "False", "GatewayUnreachable")
"""All is rendered, and no gateway runs."""
MODELS = [
    {
        "name": name,
        "cost": {"inputPer1K": price, "outputPer1K": price},
        "maxContext": 128_000,
        "latencyMs": 500,
    }
    for name, price in (("large", "0.006"), ("medium", "0.003"), ("small", "0.0006"))
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


async def create_with_provider(cluster: Cluster, namespace: str, *budgets: Manifest) -> None:
    """Create budgets with all that they need; none are given: one."""
    wanted = budgets or (budget(namespace),)
    await create(cluster, secret(namespace), provider(namespace), *wanted)


async def cap_of(cluster: Cluster, namespace: str) -> int:
    """Read the cap of which a gateway is told, in nano-USD; 0: there is none."""
    found = await cluster.get(CONFIG_MAPS, namespace, GATEWAY)
    if found is None:
        return 0
    cap: int = json.loads(found["data"]["gateway.json"])["accounts"][0]["capNano"]
    return cap


async def until_cap(cluster: Cluster, namespace: str, usd: str) -> None:
    """Wait until the gateway is told of a cap."""
    nano = int(Decimal(usd) * 10**9)

    async def told() -> bool:
        return await cap_of(cluster, namespace) == nano

    await until(f"a cap of {usd} USD", told)


async def until(
    what: str, ask: Callable[[], Awaitable[Any]], seconds: float = 40, every: float = 0.1
) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    answer = None
    while time.monotonic() < deadline:
        answer = await ask()
        if answer:
            return answer
        await asyncio.sleep(every)
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


async def deployment(cluster: Cluster, namespace: str, name: str = GATEWAY) -> Manifest | None:
    return await cluster.get(DEPLOYMENTS, namespace, name)


async def start_operator(stage: Stage, *, again: bool = False) -> asyncio.subprocess.Process:
    """Start the operator; `again`: another one, after or beside the first."""
    name = f"operator-{secrets.token_hex(3)}" if again else "operator"
    return await stage.operator(allow_private=["127.0.0.1"], name=name)


PRICES = {model["name"]: model["cost"] for model in MODELS}
KEY = "sk-canary"


@dataclass
class Spender:
    """An application: a token, and the gateway's address."""

    url: str
    token: str
    bill: Path
    """The provider's own."""
    ledger: Path
    """The gateway's."""
    authorities: Path
    """The gateway's certificate is checked by these."""
    enough: bool = False
    client: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cafile=self.authorities)
        self.client = httpx.AsyncClient(trust_env=False, timeout=30, verify=context)

    async def call(self, model: str = "large", words: int = 1000) -> httpx.Response:
        """Ask for an answer of that many words, which are as many tokens."""
        body = {
            "model": model,
            "max_tokens": words,
            "messages": [{"role": "user", "content": f"say {words} words"}],
        }
        headers = {"authorization": f"Bearer {self.token}"}
        return await self.client.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    async def go_on(self, seed: int) -> None:
        """Call again and again, whatever is answered, until `enough` is set."""
        chance = random.Random(seed)
        while not self.enough:
            with contextlib.suppress(httpx.HTTPError):
                await self.call(chance.choice(["large", "small"]), chance.randint(1, 40))
            await asyncio.sleep(chance.uniform(0.0, 0.1))

    async def books_agree(self, cap_nano: int) -> None:
        """Once nothing is held: the bill is within the cap, and row for row in the ledger."""

        async def settled() -> list[Entry] | None:
            connection = connect_reading(self.ledger)
            try:
                rows = Rows(connection)
                return None if rows.holds() else rows.entries(0, 1_000_000)
            finally:
                connection.close()

        entries = await until("every hold is resolved", settled)
        bill = Bill(self.bill).total()
        assert bill["nano"] <= cap_nano
        assert sum(entry.cost for entry in entries) == bill["nano"]
        assert len(entries) == len({entry.id for entry in entries}) == bill["calls"]

    async def spend(self, usd: str, model: str = "large") -> None:
        """Call until so much has been spent."""
        spent = Decimal(0)
        while spent < Decimal(usd):
            answer = await self.call(model)
            assert answer.status_code == 200, answer.text
            spent += Decimal(answer.headers["x-llmbudget-cost-usd"])


async def start_spending(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    *budgets: Manifest,
    latency_ms: int = 1,
    reason: tuple[str, str, str] = READY,
) -> Spender:
    """Start a provider simulator, apply the budgets (a root first), start its gateway."""
    url, bill = await stage.provider(PRICES, KEY, latency_ms=latency_ms)
    await create(cluster, secret(namespace), provider(namespace, url), *budgets)
    await until("the gateway's Deployment", lambda: deployment(cluster, namespace))
    gateway = await stage.gateway(f"{namespace}/team-a")
    await until_condition(cluster, namespace, *reason)
    token = await stage.token(namespace, "default", "llmbudget")
    ledger = stage.gateways / "claims" / namespace / "team-a-ledger" / FILE_NAME
    return Spender(gateway, token, bill, ledger, await stage.authorities(f"{namespace}/team-a"))


def workload(namespace: str, account: str, **annotations: str) -> Manifest:
    """Write a Deployment that consents to be moved."""
    consent = {"llmbudget.io/allow-budget": account, "llmbudget.io/model-env": "LLM_MODEL"}
    labels = {"app": "researcher"}
    env = [{"name": "OTHER", "value": "stays"}, {"name": "LLM_MODEL", "value": "large"}]
    container = {"name": "main", "image": "registry.example/researcher:1.0", "env": env}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "researcher",
            "namespace": namespace,
            "labels": labels,
            "annotations": annotations or consent,
        },
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def model_of(found: Manifest | None) -> str | None:
    """Read the model variable of a workload."""
    assert found is not None
    env = found["spec"]["template"]["spec"]["containers"][0]["env"]
    return next((entry.get("value") for entry in env if entry["name"] == "LLM_MODEL"), None)


async def until_model(cluster: Cluster, namespace: str, model: str) -> Manifest:
    """Wait until the workload holds a model; return it."""

    async def ask() -> Manifest | None:
        found = await deployment(cluster, namespace, "researcher")
        return found if model_of(found) == model else None

    found: Manifest = await until(f"the workload's model is {model}", ask)
    return found


async def until_phase(cluster: Cluster, namespace: str, phase: str) -> Manifest:
    """Wait for a phase; return the status."""

    async def ask() -> Manifest | None:
        now = await status(cluster, namespace)
        return now if now.get("phase") == phase else None

    found: Manifest = await until(f"phase {phase}", ask)
    return found


__all__ = ["PROVIDERS"]
