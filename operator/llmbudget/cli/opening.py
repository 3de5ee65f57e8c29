"""The opening ledger: a Job that charges the history to the account before a gateway opens it."""

from __future__ import annotations

import base64
from typing import Final

from llmbudget.api.budget import BudgetSpec
from llmbudget.api.gateway_spec import SqliteLedger
from llmbudget.cli.guide_files import Manifest
from llmbudget.contract.config import LEDGER_DIRECTORY
from llmbudget.decide.world import Budget
from llmbudget.render.names import labels, ledger_claim

_USAGE: Final = "/var/run/usage"
_POSTGRES: Final = "/var/run/postgres"
_FILE: Final = "llm_usage.json.gz"


def opening(org: Manifest, usage: bytes, image: str) -> list[Manifest]:
    """Build the history's ConfigMap, the ledger's claim where it is a file, and the Job.

    The claim is the one that the operator would make: it is found and kept.
    """
    metadata = org["metadata"]
    budget = Budget(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid="",
        generation=0,
        annotations={},
        spec=BudgetSpec.model_validate(org["spec"]),
    )
    name = f"{budget.name}-opening"
    where = {"name": name, "namespace": budget.namespace}
    packed = {_FILE: base64.b64encode(usage).decode()}
    history = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": where, "binaryData": packed}
    postgres = budget.spec.ledger.postgres
    if postgres is not None:
        ref = postgres.secret_key_ref
        items = [{"key": ref.key, "path": "uri"}]
        volume: Manifest = {"secret": {"secretName": ref.name, "items": items}}
        argument = f"--postgres={_POSTGRES}/uri"
        return [history, _job(budget, image, argument, _POSTGRES, volume)]
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": ledger_claim(budget),
            "namespace": budget.namespace,
            "labels": labels(budget),
        },
        "spec": {
            "accessModes": ["ReadWriteOncePod"],
            "resources": {"requests": {"storage": SqliteLedger().storage}},
        },
    }
    volume = {"persistentVolumeClaim": {"claimName": ledger_claim(budget)}}
    job = _job(budget, image, f"--ledger={LEDGER_DIRECTORY}", LEDGER_DIRECTORY, volume)
    return [history, claim, job]


def _job(budget: Budget, image: str, argument: str, path: str, volume: Manifest) -> Manifest:
    name = f"{budget.name}-opening"
    container = {
        "name": "opening",
        "image": image,
        "args": [
            *("ledger", "take-over", f"--account={budget.account}"),
            *(f"--usage={_USAGE}/{_FILE}", argument),
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "usage", "mountPath": _USAGE, "readOnly": True},
            {"name": "ledger", "mountPath": path},
        ],
    }
    pod = {
        "restartPolicy": "OnFailure",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 2000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "usage", "configMap": {"name": name}},
            {"name": "ledger", **volume},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": budget.namespace},
        "spec": {"backoffLimit": 3, "template": {"spec": pod}},
    }
