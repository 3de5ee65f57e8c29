"""What the demo watches while the money drains, each thing where a person would look for it.

The client's own words, the budget's status and the Deployment on the API server, the notices at
the address that the budget names. Each is told once, as it happens.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from llmbudget.api.money import parse_usd
from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, DEPLOYMENTS
from llmbudget.local.demo_client import MODEL
from llmbudget.local.http1 import Answer, Request
from llmbudget.local.screen import Screen

PERIOD: Final = 0.2
"""Seconds between two looks at the cluster."""
REVISION: Final = "deployment.kubernetes.io/revision"


@dataclass
class Seen:
    """What has happened so far."""

    calls: Counter[str] = field(default_factory=Counter)
    """Answered calls by the model that answered."""
    refusal: str | None = None
    """What the first 402 said."""
    failures: list[str] = field(default_factory=list)
    """What the client met that it should not."""
    notices: list[str] = field(default_factory=list)
    phase: str | None = None
    model: str | None = None
    """What LLM_MODEL of the application's Deployment is."""
    rolled_out: bool = False
    """Whether pods with another model than at first have taken over."""


class Show:
    """Watches, and tells."""

    def __init__(self, screen: Screen, cluster: Cluster, budget: str, deployment: str) -> None:
        self.seen = Seen()
        self._screen = screen
        self._cluster = cluster
        self._budget = budget
        self._deployment = deployment
        self._revision = ""

    async def notice(self, request: Request, answer: Answer) -> None:
        """Take a notice, as the address in the notifications Secret."""
        answer.send(HTTPStatus.OK, b"{}")
        message = json.loads(request.body)
        title, text = str(message.get("title", "")), str(message.get("message", "")).strip()
        self.seen.notices.append(f"{title}\n{text}")
        self._screen.news("a notice arrives", title, *text.splitlines()[:2])

    async def follow_client(self, output: asyncio.StreamReader) -> None:
        """Read the client's events to their end."""
        async for line in output:
            event = json.loads(line)
            match event["status"]:
                case 200:
                    self._answered(str(event["model"]))
                case 402 if self.seen.refusal is None:
                    self.seen.refusal = str(event["message"])
                    self._screen.news("402: the gateway lets no call leave", self.seen.refusal)
                case 402 | 429:
                    pass
                case status:
                    self.seen.failures.append(f"{status}: {event['message']}")

    def _answered(self, model: str) -> None:
        if model != MODEL and not self.seen.calls[model]:
            self._screen.news(
                f"downgrade: the application asks for {MODEL}, {model} answers",
                "in the request path, so from the very next call on",
            )
        self.seen.calls[model] += 1

    async def follow_cluster(self) -> None:
        """Watch the budget and the Deployment until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(PERIOD)

    async def look(self) -> Mapping[str, Any]:
        """Look at the budget and the Deployment once; return the budget's status."""
        budget = await self._cluster.get(BUDGETS, *self._budget.split("/")) or {}
        status: Mapping[str, Any] = budget.get("status", {})
        self._show_status(status)
        deployment = await self._cluster.get(DEPLOYMENTS, *self._deployment.split("/"))
        if deployment is not None:
            self._show_deployment(deployment)
        return status

    def _show_status(self, status: Mapping[str, Any]) -> None:
        phase = status.get("phase")
        if phase != self.seen.phase:
            if self.seen.phase is not None:
                detail = f"activeModel: {status.get('activeModel')}"
                self._screen.news(f"the budget's phase: {self.seen.phase} → {phase}", detail)
            self.seen.phase = phase
        if "spent" in status and "cap" in status:
            share = parse_usd(status["spent"]) * 1000 // parse_usd(status["cap"])
            calls = ", ".join(f"{count} × {model}" for model, count in self.seen.calls.items())
            text = f"${status['spent']} of ${status['cap']}, held ${status.get('held', '0')}"
            self._screen.bar(share, f"{text}  {calls}")

    def _show_deployment(self, deployment: Mapping[str, Any]) -> None:
        model = _model(deployment)
        revision = deployment["metadata"].get("annotations", {}).get(REVISION, "")
        if self.seen.model is None:
            self.seen.model, self._revision = model, revision
        elif model != self.seen.model:
            self._screen.news(
                f"Deployment {self._deployment} is patched",
                f"LLM_MODEL: {self.seen.model} → {model}",
            )
            self.seen.model = model
        elif revision != self._revision and _complete(deployment):
            replicas = deployment["spec"]["replicas"]
            self._screen.news(
                f"Deployment {self._deployment} has rolled out",
                f"revision {self._revision} → {revision}, {replicas} of {replicas} pods"
                f" with LLM_MODEL={model}",
            )
            self._revision, self.seen.rolled_out = revision, True


def _model(deployment: Mapping[str, Any]) -> str:
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return next(str(entry["value"]) for entry in variables if entry["name"] == "LLM_MODEL")


def _complete(deployment: Mapping[str, Any]) -> bool:
    """Tell whether a rollout is over, as `kubectl rollout status` does."""
    status, replicas = deployment.get("status", {}), deployment["spec"]["replicas"]
    seen = int(status.get("observedGeneration", 0)) >= int(deployment["metadata"]["generation"])
    return (
        seen
        and status.get("updatedReplicas", 0) == replicas
        and status.get("replicas", 0) == replicas
        and status.get("availableReplicas", 0) == replicas
    )
