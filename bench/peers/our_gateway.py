"""Our gateway, as a pod would run it: its configuration in a ConfigMap of a real API server, which
also reviews the callers' tokens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import yaml

from llmbudget.api.credentials import KeyHeader
from llmbudget.api.meta import AUDIENCE
from llmbudget.api.money import parse_price
from llmbudget.api.provider import Protocol
from llmbudget.contract.config import (
    CONFIG_KEY,
    AccountConfig,
    ConsumerConfig,
    GatewayConfig,
    ModelConfig,
    Prices,
    ProviderConfig,
)
from llmbudget.ledger.sqlite.schema import FILE_NAME
from llmbudget.local.process import free_port, spawn, stop
from llmbudget.local.stage import PROGRAM, Stage, write_private

NAMESPACE: Final = "bench"
ACCOUNT: Final = f"{NAMESPACE}/bench"
GATEWAY: Final = "bench-gateway"
START_SECONDS: Final = 30

PriceTable = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Running:
    """A gateway that serves."""

    url: str
    tokens: Sequence[str]
    """One a ServiceAccount that may call."""
    process: asyncio.subprocess.Process
    ledger: Path


def configuration(prices: PriceTable, cap: int, provider: str, callers: int) -> GatewayConfig:
    """Build what the operator would render; the cap is in nano-USD."""
    models = tuple(
        ModelConfig(
            name=name,
            upstream_name=name,
            prices=_prices(price["inputPer1K"], price["outputPer1K"]),
            max_context=128_000,
            max_output=16_384,
            default_max_output=4096,
            latency_ms=100,
        )
        for name, price in prices.items()
    )
    upstream = ProviderConfig(
        name="simulator",
        protocol=Protocol.OPENAI,
        endpoint=provider,
        allow_private=True,
        key_header=KeyHeader.AUTHORIZATION,
        models=models,
        connect_timeout_ms=5_000,
        idle_timeout_ms=60_000,
        total_timeout_ms=600_000,
        bills_errors=False,
    )
    names = tuple(_callers(callers))
    account = AccountConfig(
        name=ACCOUNT,
        cap_nano=cap,
        providers=("simulator",),
        consumers=(ConsumerConfig(namespace=NAMESPACE, service_accounts=names),),
    )
    return GatewayConfig(
        generation=1,
        root=ACCOUNT,
        operator=f"{NAMESPACE}/nobody",
        accounts=(account,),
        providers=(upstream,),
        endpoints=(),
    )


def _callers(number: int) -> list[str]:
    return [f"caller-{index}" for index in range(number)]


def _prices(per_1k_in: str, per_1k_out: str) -> Prices:
    input_, output = parse_price(per_1k_in), parse_price(per_1k_out)
    return Prices(
        input=input_, output=output, cached_input=input_, cache_write=input_, reasoning=output
    )


def objects(config: GatewayConfig, callers: int) -> list[dict[str, Any]]:
    """List what the gateway needs in the cluster: accounts, rights, configuration."""
    subject = {"kind": "ServiceAccount", "name": GATEWAY, "namespace": NAMESPACE}
    rbac = "rbac.authorization.k8s.io"
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}

    def named(api: str, kind: str, name: str) -> dict[str, Any]:
        return {
            "apiVersion": api,
            "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE},
        }

    def binding(kind: str, role: str) -> dict[str, Any]:
        return {"subjects": [subject], "roleRef": {"apiGroup": rbac, "kind": kind, "name": role}}

    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        *(named("v1", "ServiceAccount", caller) for caller in _callers(callers)),
        named("v1", "ServiceAccount", GATEWAY),
        named("v1", "ConfigMap", GATEWAY) | {"data": {CONFIG_KEY: config.to_json()}},
        named(f"{rbac}/v1", "Role", GATEWAY) | {"rules": [rule]},
        named(f"{rbac}/v1", "RoleBinding", GATEWAY) | binding("Role", GATEWAY),
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": GATEWAY},
            **binding("ClusterRole", "system:auth-delegator"),
        },
    ]


@contextlib.asynccontextmanager
async def running(
    config: GatewayConfig,
    key: str,
    folder: Path,
    stage: Stage,
    *,
    callers: int = 1,
    tls: Path | None = None,
    prefix: Sequence[str] = (),
) -> AsyncIterator[Running]:
    """Serve for the block; `folder` takes ledger, keys and log, `prefix` goes before the command
    (a profiler, a choice of cores)."""
    tokens = await prepare(config, key, folder, stage, callers)
    async with serving(tokens, folder, stage, tls=tls, prefix=prefix) as gateway:
        yield gateway


async def prepare(
    config: GatewayConfig, key: str, folder: Path, stage: Stage, callers: int = 1
) -> Sequence[str]:
    """Lay out what a gateway needs, in the cluster and in `folder`; the callers' tokens are
    returned."""
    manifests = yaml.safe_dump_all(objects(config, callers))
    await stage.kubectl("apply", "--server-side", "-f", "-", stdin=manifests)
    await _identity(stage, folder)
    for name in ("keys", "ca", "ledger"):
        (folder / name).mkdir()
    write_private(folder / "keys" / "simulator", key)
    return [await stage.token(NAMESPACE, caller, AUDIENCE) for caller in _callers(callers)]


@contextlib.asynccontextmanager
async def serving(
    tokens: Sequence[str],
    folder: Path,
    stage: Stage,
    *,
    tls: Path | None = None,
    prefix: Sequence[str] = (),
    postgres: Path | None = None,
) -> AsyncIterator[Running]:
    """Serve for the block from a folder that was prepared; `postgres` is the file with the
    connection string of a shared ledger, in place of the folder's own."""
    port = free_port()
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    with (folder / "gateway.log").open("ab") as log:
        process = await spawn(
            [
                *prefix,
                PROGRAM,
                "gateway",
                f"--config-map={NAMESPACE}/{GATEWAY}",
                f"--budget={NAMESPACE}/{GATEWAY}",
                f"--keys={folder / 'keys'}",
                f"--ca={folder / 'ca'}",
                f"--postgres={postgres}" if postgres else f"--ledger={folder / 'ledger'}",
                f"--service-account={folder / 'account'}",
                f"--posthog-key={folder / 'none'}",
                f"--datadog-key={folder / 'none'}",
                f"--listen=127.0.0.1:{port}",
                *([f"--tls={tls}"] if tls else ["--plain-http"]),
            ],
            environment=_server(stage),
            output=log,
        )
        try:
            await _ready(process, url, folder)
            yield Running(url, tokens, process, folder / "ledger" / FILE_NAME)
        finally:
            await stop(process, grace=40)


async def _identity(stage: Stage, folder: Path) -> None:
    """Lay the gateway's ServiceAccount folder out as in a pod."""
    account = folder / "account"
    account.mkdir()
    write_private(account / "token", await stage.token(NAMESPACE, GATEWAY))
    (account / "namespace").write_text(NAMESPACE)
    bundle = await stage.get("configmap", "default", "kube-root-ca.crt")
    (account / "ca.crt").write_text(bundle["data"]["ca.crt"])


def _server(stage: Stage) -> dict[str, str]:
    config = yaml.safe_load(stage.kubeconfig.read_text())
    url = urlsplit(config["clusters"][0]["cluster"]["server"])
    return {
        "KUBERNETES_SERVICE_HOST": str(url.hostname),
        "KUBERNETES_SERVICE_PORT": str(url.port),
    }


async def _ready(process: asyncio.subprocess.Process, url: str, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    # The bench made the certificate itself; what is measured is not whether it is checked.
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        while process.returncode is None and time.monotonic() < deadline:
            try:
                if (await client.get(f"{url}/readyz")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit(f"the gateway did not start: see {folder / 'gateway.log'}")
