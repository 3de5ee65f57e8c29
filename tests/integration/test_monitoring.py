"""Prometheus gets what the shipped alerts and the dashboard ask for, as the PodMonitors say."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.support.operator_stage import (
    Spender,
    budget,
    create,
    start_spending,
    until,
    until_condition,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import SECRETS
from llmbudget.local.stage import OPERATOR_NAMESPACE, ROOT, Stage

pytestmark = pytest.mark.cluster
MANIFESTS = ROOT / "manifests" / "monitoring"
NAME = re.compile(r"\b((?:gen_ai|llmbudget|workqueue|leader_election)_[a-z_]+)\b")
Samples = dict[tuple[str, ...], float]
"""By name and the values of labels."""


def documents(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / file).read_text()))


def samples(text: str) -> Samples:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape_gateway(app: Spender, cluster: Cluster) -> str:
    """As the PodMonitor says: by the pod's address, with the account's token and the name that the
    certificate of every gateway has."""
    (monitor,) = (
        one["spec"]["podMetricsEndpoints"][0]
        for one in documents("podmonitors.yaml")
        if one["metadata"]["name"] == "llmbudget-gateways"
    )
    credentials = monitor["authorization"]["credentials"]

    async def token() -> str | None:
        secret = await cluster.get(SECRETS, OPERATOR_NAMESPACE, credentials["name"])
        return ((secret or {}).get("data") or {}).get(credentials["key"])

    encoded = await until("the account's token", token)
    headers = {"authorization": f"Bearer {base64.b64decode(encoded).decode()}"}
    context = ssl.create_default_context(cafile=app.authorities)
    async with httpx.AsyncClient(trust_env=False, verify=context) as client:
        request = client.build_request("GET", f"{app.url}/metrics", headers=headers)
        request.extensions["sni_hostname"] = monitor["tlsConfig"]["serverName"]
        answer = await client.send(request)
    assert answer.status_code == 200, answer.text
    return answer.text


async def scrape_operator(stage: Stage) -> Samples:
    async with httpx.AsyncClient(trust_env=False) as client:
        return samples((await client.get(f"{stage.health}/metrics")).text)


async def test_what_is_asked_for_is_there(
    stage: Stage, cluster: Cluster, namespace: str, operator: asyncio.subprocess.Process
) -> None:
    await stage.kubectl("apply", "--server-side", "-f", str(MANIFESTS / "scraper.yaml"))
    app = await start_spending(stage, cluster, namespace, budget(namespace))
    assert (await app.call()).status_code == 200
    assert (await app.call("unknown")).status_code == 403
    await create(cluster, budget(namespace, "bad", providers=[{"name": "missing"}]))
    await until_condition(cluster, namespace, "Ready", "False", "ProviderNotFound", name="bad")

    gateway = samples(await scrape_gateway(app, cluster))
    assert gateway["llmbudget_cap_usd", f"{namespace}/team-a"] == 1
    assert gateway["llmbudget_spent_usd", f"{namespace}/team-a"] > 0

    async def bad_is_told() -> Samples | None:
        found = await scrape_operator(stage)
        told = ("llmbudget_budget_ready", f"{namespace}/bad", "ProviderNotFound") in found
        return found if told else None

    told = await until("the bad budget's series", bad_is_told)
    assert told["llmbudget_budget_ready", f"{namespace}/bad", "ProviderNotFound"] == 0
    assert told["llmbudget_budget_ready", f"{namespace}/team-a", "Reconciled"] == 1
    assert told["llmbudget_provider_ready", f"{namespace}/sim", "Reconciled"] == 1
    assert told["leader_election_master_status", "llmbudget-operator"] == 1
    assert told["workqueue_work_duration_seconds_count", "roots"] > 0

    there = {key[0] for key in (*gateway, *told)}
    assert asked() - there <= {
        # No stream, and nobody fell back, or failed.
        "gen_ai_server_time_to_first_token_seconds_bucket",
        "gen_ai_client_operation_time_to_first_chunk_seconds_bucket",
    }


def asked() -> set[str]:
    """Name all metrics that alerts and panels ask for."""
    panels = json.loads((MANIFESTS / "llmbudget.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    (rules,) = documents("rules.yaml")
    expressions += [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    without_labels = [re.sub(r"\{[^}]*\}|by \([^)]*\)", "", each) for each in expressions]
    return {name for each in without_labels for name in NAME.findall(each)}
