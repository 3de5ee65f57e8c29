"""A real gateway process against the real API server, and a provider simulator behind it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import os
import resource
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from llmbudget.api.credentials import KeyHeader
from llmbudget.api.meta import operator_audience
from llmbudget.api.provider import Protocol, ProviderSpec
from llmbudget.clients.cluster import Cluster
from llmbudget.contract.config import (
    AccountConfig,
    ConsumerConfig,
    EndpointConfig,
    GatewayConfig,
    Limits,
    ModelConfig,
    Prices,
    ProviderConfig,
    Threshold,
)
from llmbudget.decide.prices import resolve_prices
from llmbudget.ledger.interface import Entry
from llmbudget.ledger.sqlite.rows import Rows
from llmbudget.ledger.sqlite.schema import connect_reading
from llmbudget.local.process import free_port
from llmbudget.reconcile.x509 import Authority

USD = 10**9
KEY = "sk-canary-4f1e9d8c7b6a5e4d3c2b1a09"
"""The provider's key: nothing but the provider may ever see it."""
PROMPT = "canary prompt"
"""Stands in every prompt: nothing but the provider may ever see it."""
OPERATOR = "llmbudget-system/llmbudget-operator"
COMMAND = (sys.executable, "-c", "from llmbudget.cli import main; main()")
PRICES: dict[str, dict[str, Any]] = {
    "large": {"inputPer1K": "0.003", "outputPer1K": "0.015"},
    "small": {"inputPer1K": "0.0006", "outputPer1K": "0.0006"},
    "free": {"inputPer1K": "0", "outputPer1K": "0"},
    "long": {
        **{"inputPer1K": "0.001", "outputPer1K": "0.004"},
        "longContext": [{"above": 200, "inputPer1K": "0.002", "outputPer1K": "0.006"}],
    },
    "seer": {"inputPer1K": "0.0006", "outputPer1K": "0.0006"},
    "tiered": {
        **{"inputPer1K": "0.002", "outputPer1K": "0.008"},
        "serviceTiers": [
            {"name": "flex", "inputPer1K": "0.001", "outputPer1K": "0.004"},
            {"name": "priority", "inputPer1K": "0.0035", "outputPer1K": "0.014"},
        ],
    },
    "finder": {"inputPer1K": "0.0006", "outputPer1K": "0.0006", "per1KSearches": "10"},
}
MEDIA_PRICES: dict[str, dict[str, Any]] = {
    "whisper": {"perMinute": "0.006"},
    "hear": {"inputPer1K": "0.0025", "outputPer1K": "0.01"},
    "tts": {"per1KCharacters": "0.015"},
    "speak": {"inputPer1K": "0.0006", "outputPer1K": "0.012"},
    "draw": {"inputPer1K": "0.005", "outputPer1K": "0.04"},
    "paint": {"perImage": [{"price": "0.04"}]},
}
"""Of models for sound and images."""
MODES = (
    *("hang", "reset", "cut", "garbage", "no-usage", "negative-usage", "absurd-usage"),
    *("redirect", "echo", "status-500", "status-400", "status-429", "status-504", "status-401"),
)


def model(name: str, like: str) -> ModelConfig:
    return ModelConfig(
        name=name,
        upstream_name=name,
        prices=prices_of(like),
        max_context=128_000,
        max_output=16_384,
        default_max_output=256,
        image_tokens=1000 if like == "seer" else None,
        latency_ms={"large": 800, "small": 500, "free": 200}.get(like, 1000),
    )


def media_models() -> tuple[ModelConfig, ...]:
    """Models for sound and images, and those that misbehave."""
    bounds = {"context_bound": 16_000, "max_output": 2000, "media_output_tokens": 500}
    bounds |= {"audio_seconds": 600}
    names = [(like, like) for like in MEDIA_PRICES]
    names += [(f"{like}@{mode}", like) for like in MEDIA_PRICES for mode in MODES]
    return tuple(model(name, like).model_copy(update=bounds) for name, like in names)


def prices_of(like: str) -> Prices | None:
    """Resolve the prices of a resource that states what the simulator charges."""
    cost = dict((PRICES | MEDIA_PRICES)[like])
    searches = cost.pop("per1KSearches", None)
    spec = ProviderSpec.model_validate(
        {
            "endpoint": "https://sim.example",
            "credentials": {"secretKeyRef": {"name": "keys", "key": "KEY"}},
            "models": [{"name": like, "cost": cost}],
            "hosted": {"webSearchPer1K": searches} if searches else {},
        }
    )
    return resolve_prices(spec.models[0], spec, datetime.now(UTC))


def provider(name: str, port: int, **changes: Any) -> ProviderConfig:
    models = [model(like, like) for like in PRICES]
    models += [model(f"small@{mode}", "small") for mode in MODES]
    models += [model("tiered@usual-tier", "tiered"), model("tiered@no-usage", "tiered")]
    values: dict[str, Any] = {
        "name": name,
        "protocol": Protocol.OPENAI,
        "endpoint": f"http://127.0.0.1:{port}/v1",
        "allow_private": True,
        "key_header": KeyHeader.AUTHORIZATION,
        "models": tuple(models),
        "connect_timeout_ms": 2000,
        "idle_timeout_ms": 1500,
        "total_timeout_ms": 20_000,
        "bills_errors": False,
    }
    return ProviderConfig(**(values | changes))


def account(namespace: str, cap_nano: int | None, **changes: Any) -> AccountConfig:
    values: dict[str, Any] = {
        "name": f"{namespace}/team-a",
        "cap_nano": cap_nano,
        "ladder": ("large", "small", "free"),
        "providers": ("sim",),
        "consumers": (ConsumerConfig(namespace=namespace, service_accounts=("researcher",)),),
        "retries": 0,
    }
    return AccountConfig(**(values | changes))


def config(
    namespace: str,
    accounts: tuple[AccountConfig, ...],
    providers: tuple[ProviderConfig, ...],
    generation: int = 1,
    **changes: Any,
) -> GatewayConfig:
    values: dict[str, Any] = {
        "generation": generation,
        "root": f"{namespace}/team-a",
        "operator": OPERATOR,
        "accounts": accounts,
        "providers": providers,
        "endpoints": (
            EndpointConfig(path="/metrics", auth_required=True, per_minute=100),
            EndpointConfig(path="/health", auth_required=False, per_minute=60),
        ),
    }
    return GatewayConfig(**(values | changes))


class Simulator:
    """The provider simulator as a process."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.port = free_port()
        self.bill_file = folder / "bill.jsonl"
        prices = folder / "prices.json"
        listed = PRICES | MEDIA_PRICES
        prices.write_text(json.dumps(listed))
        key = folder / "sim-key"
        key.write_text(KEY)
        extra = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self._command = [
            *COMMAND,
            *("local", "provider", f"--port={self.port}", f"--prices={prices}"),
            *(f"--bill={self.bill_file}", f"--keys={key}", *extra),
        ]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    async def ready(self) -> None:
        await until_connects(self.port)

    async def bill(self) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False) as client:
            found: dict[str, Any] = (await client.get(f"http://127.0.0.1:{self.port}/bill")).json()
            return found

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


class GatewayProcess:
    """`llmbudget gateway` as its pod would run it."""

    def __init__(self, cluster: Cluster, kubeconfig: Path, namespace: str, folder: Path) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.folder = folder
        self.port = free_port()
        self.tls: Path | None = None
        self.trust: ssl.SSLContext | bool = True
        self.grace_seconds = 25.0
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "gateway.log"
        self.postgres: Path | None = None
        """File with the connection string of the shared ledger; None: a file of its own."""
        self.region: str | None = None
        self.region_postgres: Path | None = None
        """File with the connection string of its region's own database."""
        self.drain_seconds = 0.0
        self.files: int | None = None
        """How many files it may open; None: as many as this process."""
        self._kubeconfig = kubeconfig
        self.process: subprocess.Popen[bytes] | None = None

    def serve_tls(self, folder: Path) -> Path:
        """Serve TLS by an authority of its own; return the file of its certificate."""
        now = datetime.now(UTC)
        authority = Authority.make(now, timedelta(days=2))
        pair = authority.issue(["127.0.0.1", "localhost"], now, timedelta(days=1))
        folder.mkdir()
        for name, content in (
            *(("tls.crt", pair.certificate), ("tls.key", pair.key)),
            ("ca.crt", authority.pair.certificate),
        ):
            (folder / name).write_bytes(content)
        self.tls, self.url = folder, f"https://127.0.0.1:{self.port}"
        self.trust = ssl.create_default_context(cafile=folder / "ca.crt")
        return folder / "ca.crt"

    def beside(self) -> GatewayProcess:
        """Make another gateway of the same budget."""
        other = copy.copy(self)
        other.port, other.process = free_port(), None
        other.url = f"http://127.0.0.1:{other.port}"
        other.log = self.folder / f"gateway-{other.port}.log"
        return other

    async def prepare(self) -> None:
        """Create what the operator and the kubelet would have created."""
        name = "team-a-gateway"
        metadata = {"name": name, "namespace": self.namespace}
        rbac = "rbac.authorization.k8s.io"
        subject = {"kind": "ServiceAccount", **metadata}
        consumer = {"name": "researcher", "namespace": self.namespace}
        rule = {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [name],
            "verbs": ["get", "list", "watch"],
        }
        delegator = {"name": f"test:{self.namespace}"}
        for manifest in (
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": consumer},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "Role",
                "metadata": metadata,
                "rules": [rule],
            },
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
                "subjects": [subject],
            },
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": delegator,
                "roleRef": {
                    "apiGroup": rbac,
                    "kind": "ClusterRole",
                    "name": "system:auth-delegator",
                },
                "subjects": [subject],
            },
        ):
            await self.cluster.apply(manifest)
        text = await asyncio.to_thread(self._kubeconfig.read_text)
        entry = yaml.safe_load(text)["clusters"][0]["cluster"]
        self._server = entry["server"].removeprefix("https://").split(":")
        for directory in ("keys", "vault", "ca", "ledger", "sa"):
            (self.folder / directory).mkdir(exist_ok=True)
        certificate = base64.b64decode(entry["certificate-authority-data"])
        (self.folder / "sa" / "ca.crt").write_bytes(certificate)
        token, _ = await self.cluster.create_token(self.namespace, name, None, 3600)
        (self.folder / "sa" / "token").write_text(token)

    async def configure(self, document: GatewayConfig) -> None:
        metadata = {"name": "team-a-gateway", "namespace": self.namespace}
        data = {"gateway.json": document.to_json()}
        await self.cluster.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        )
        for each in document.providers:
            key = self.folder / "keys" / each.name
            if each.vault is None and not key.exists():
                key.write_text(KEY + "\n")

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        host, port = self._server
        folder = self.folder
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *COMMAND,
                    "gateway",
                    f"--config-map={self.namespace}/team-a-gateway",
                    f"--budget={self.namespace}/team-a",
                    *(f"--keys={folder / 'keys'}", f"--vault={folder / 'vault'}"),
                    f"--ca={folder / 'ca'}",
                    f"--ledger={folder / 'ledger'}"
                    if self.postgres is None
                    else f"--postgres={self.postgres}",
                    *([f"--region={self.region}"] if self.region else []),
                    *(
                        [f"--region-postgres={self.region_postgres}"]
                        if self.region_postgres
                        else []
                    ),
                    f"--drain={self.drain_seconds}",
                    f"--grace={self.grace_seconds}",
                    f"--service-account={folder / 'sa'}",
                    f"--posthog-key={folder / 'posthog'}",
                    f"--datadog-key={folder / 'datadog'}",
                    f"--listen=127.0.0.1:{self.port}",
                    *([f"--tls={self.tls}"] if self.tls else ["--plain-http"]),
                ],
                env=os.environ
                | {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
                | dict(environment or {}),
                preexec_fn=None if self.files is None else partial(_allow_files, self.files),
                stdout=log,
                stderr=log,
            )

    async def ready(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        async with httpx.AsyncClient(trust_env=False, verify=self.trust) as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self.url}/readyz")).is_success:
                        return
                assert self.process is not None
                if self.process.poll() is not None:
                    break
                await asyncio.sleep(0.05)
        raise AssertionError(f"the gateway is not ready:\n{self.log.read_text()}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    async def scrape(self) -> str:
        """Read the metrics, as the monitoring of the cluster would."""
        account = {"name": "prometheus", "namespace": self.namespace}
        reader = {"name": f"prometheus:{self.namespace}"}
        await self.cluster.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}
        )
        await self.cluster.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": reader,
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "system:monitoring",
                },
                "subjects": [{"kind": "ServiceAccount", **account}],
            }
        )
        token = await self.token("prometheus", audience=None)
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(trust_env=False, timeout=20, verify=self.trust) as client:
            answer = await client.get(f"{self.url}/metrics", headers=headers)
            while answer.status_code == 429:
                # A test has used up what this address may ask in a minute.
                await asyncio.sleep(int(answer.headers["retry-after"]))
                answer = await client.get(f"{self.url}/metrics", headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def operators_token(self) -> str:
        """Make the token that the operator shows to this gateway."""
        where, _, name = OPERATOR.partition("/")
        metadata = {"name": name, "namespace": where}
        for manifest in (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": where}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        ):
            await self.cluster.apply(manifest)
        audience = operator_audience(f"{self.namespace}/team-a")
        token, _ = await self.cluster.create_token(where, name, audience, 3600)
        return token

    async def token(self, name: str = "researcher", audience: str | None = "llmbudget") -> str:
        token, _ = await self.cluster.create_token(self.namespace, name, audience, 3600)
        return token


def _allow_files(files: int) -> None:
    """Let a process open so many files. Meant for the child's side of a fork."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


async def until_connects(port: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {port}"
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


async def events(gateway: GatewayProcess, token: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Follow the gateway's event stream.

    Raises:
        httpx.HTTPStatusError: it is not ready to tell.
    """
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx.AsyncClient(trust_env=False, timeout=20, verify=gateway.trust) as client,
        client.stream("GET", f"{gateway.url}/ledger/v1/balances", headers=headers) as answer,
    ):
        answer.raise_for_status()
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                yield name, json.loads(line[5:])


def body(model: str = "small", words: int = 20, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{PROMPT}: say {words} words"}]
    return {"model": model, "messages": messages, "max_tokens": 100} | fields


async def post(
    gateway: GatewayProcess, document: Any, token: str | None = None, **headers: str
) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    sent["authorization"] = f"Bearer {token or await gateway.token()}"
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    sent.setdefault("content-type", "application/json")
    async with httpx.AsyncClient(trust_env=False, timeout=30, verify=gateway.trust) as client:
        return await client.post(
            f"{gateway.url}/v1/chat/completions", content=content, headers=sent
        )


async def rows(gateway: GatewayProcess) -> list[Entry]:
    """Read the ledger beside the gateway, once every hold is resolved."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        connection = connect_reading(gateway.folder / "ledger" / "ledger.db")
        try:
            ledger = Rows(connection)
            if not ledger.holds():
                return ledger.entries(0, 1_000_000)
        finally:
            connection.close()
        await asyncio.sleep(0.05)
    raise AssertionError("a hold is never resolved")


__all__ = ["KEY", "Limits", "Threshold"]
