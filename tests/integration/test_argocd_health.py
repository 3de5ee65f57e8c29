"""Argo CD's health of budgets and providers, as its own command line evaluates the checks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.argocd import HEALTH

from llmbudget.local import binaries

pytestmark = [
    pytest.mark.slow,  # Argo CD takes minutes to build where it is not in the cache yet
    pytest.mark.timeout(1500),
]

Manifest = dict[str, Any]


def condition(kind: str, status: str, message: str = "") -> Manifest:
    return {"type": kind, "status": status, "message": message}


def resource(kind: str, *conditions: Manifest, generation: int = 2, **status: Any) -> Manifest:
    metadata = {"name": "team", "namespace": "llm-platform", "generation": generation}
    said = {"observedGeneration": 2, "conditions": list(conditions), **status}
    return {
        "apiVersion": "llmbudget.io/v1alpha1",
        "kind": kind,
        "metadata": metadata,
        "status": said,
    }


READY = condition("Ready", "True", "Calls are admitted against the budget.")
BAD = condition("Stalled", "True", "There is no LLMProvider x.")
WAITING = condition("Ready", "False", "Waiting for the gateway.")
NEW = {**resource("LLMBudget"), "status": {}}
GOING = resource("LLMBudget", READY)
GOING["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z"
STOPPED = condition("WithinBudget", "False", "Calls are stopped until someone approves.")
CASES = {
    "new": (NEW, "Progressing", "Waiting for the operator."),
    "changed": (resource("LLMBudget", READY, generation=3), "Progressing", "Waiting for the"),
    "ready": (resource("LLMBudget", READY, phase="Ready"), "Healthy", "Calls are admitted"),
    "spent": (
        resource("LLMBudget", READY, phase="Exceeded", cap="1.00", spent="1.00"),
        "Healthy",
        "1.00 of 1.00 USD spent",
    ),
    "stalled": (
        resource("LLMBudget", condition("Ready", "False"), BAD, phase="Failed"),
        "Degraded",
        "There is no LLMProvider x.",
    ),
    "waiting": (
        resource("LLMBudget", WAITING, condition("Reconciling", "True"), phase="Pending"),
        "Progressing",
        "Waiting for the gateway.",
    ),
    "approval": (
        resource("LLMBudget", READY, STOPPED, phase="AwaitingApproval"),
        "Suspended",
        "Calls are stopped until someone approves.",
    ),
    "deleting": (GOING, "Progressing", "Pending deletion"),
    "provider": (resource("LLMProvider", condition("Ready", "True")), "Healthy", ""),
    "provider unused": (
        {**resource("LLMProvider"), "status": {}},
        "Healthy",
        "No budget uses it yet.",
    ),
    "provider changed": (
        resource("LLMProvider", READY, generation=3),
        "Progressing",
        "Waiting for the operator.",
    ),
    "provider stalled": (
        resource("LLMProvider", condition("Ready", "False"), BAD),
        "Degraded",
        "There is no LLMProvider x.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_health(case: str, tmp_path: Path) -> None:
    document, status, message = CASES[case]
    file = tmp_path / "resource.yaml"
    file.write_text(yaml.safe_dump(document))
    command = ["admin", "settings", "resource-overrides", "health", str(file)]
    done = subprocess.run(
        [binaries.tool("argocd", print), *command, "--argocd-cm-path", str(HEALTH)],
        env=os.environ | {"ARGOCD_BINARY_NAME": "argocd"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert said["STATUS"] == status
    assert said.get("MESSAGE", "").startswith(message)
