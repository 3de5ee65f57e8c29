"""Workloads' Deployments, moved to a cheaper model and back."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llmbudget.api.budget import Target
from llmbudget.api.budget_status import ChangedTarget
from llmbudget.api.meta import ANNOTATION_ALLOW_BUDGET
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import DEPLOYMENTS
from llmbudget.decide.targets import Decision, Lower, consents, decide, former_target

log = logging.getLogger(__name__)

_TRIES: Final = 5
_CONFLICTS: Final = (409, 422)
"""A failed test of the version is a 422, and so is what an admission policy refuses."""
_REFUSALS: Final = (400, 403)
_MOST_CHANGED: Final = 256
"""Changed targets that a status can tell of."""


@dataclass(slots=True)
class TargetReport:
    """What became of a budget's targets."""

    changed: list[ChangedTarget] = field(default_factory=list)
    """Those that hold a model of ours now."""
    moved: list[str] = field(default_factory=list)
    """What was written this time, in words."""
    refused: list[str] = field(default_factory=list)
    """Deployments that were not touched, and why."""
    seen: set[tuple[str, str]] = field(default_factory=set)
    """All Deployments that were looked at, by namespace and name."""
    unmatched: list[str] = field(default_factory=list)
    """Targets that select nothing, in words."""


async def reconcile_targets(
    cluster: Cluster,
    account: str,
    targets: Sequence[Target],
    lower: Lower | None,
    before_change: Callable[[], Awaitable[None]] | None = None,
) -> TargetReport:
    """Bring all targets of a budget to what is in force; `lower` None: put them back.

    `before_change` is awaited before a target is moved.

    Raises:
        ApiError.
    """
    report = TargetReport()
    for target in targets:
        labels = ",".join(f"{k}={v}" for k, v in sorted(target.selector.match_labels.items()))
        try:
            found, _ = await cluster.list(DEPLOYMENTS, target.namespace, label_selector=labels)
        except ApiError as error:
            if error.status not in _REFUSALS:
                raise
            where = f"the Deployments in namespace {target.namespace}"
            report.unmatched.append(
                f"The operator may not look at {where}."
                if error.status == 403
                else f"The API server can't find {where} with the labels {labels}: {error.message}."
            )
            continue
        if target.namespace != account.partition("/")[0]:
            # What does not consent in another namespace is nobody's business here.
            found = [each for each in found if consents(each, account)]
        if not found:
            report.unmatched.append(
                f"No Deployment in namespace {target.namespace} carries the labels {labels} and the"
                f" annotation {ANNOTATION_ALLOW_BUDGET}={account}."
            )
        for deployment in found:
            await _bring(cluster, account, target, deployment, lower, report, before_change)
    return report


async def put_back(cluster: Cluster, account: str, namespace: str, name: str) -> list[str]:
    """Put a Deployment back that no target selects any more; return what was refused.

    Raises:
        ApiError.
    """
    report = TargetReport()
    try:
        deployment = await cluster.get(DEPLOYMENTS, namespace, name)
    except ApiError as error:
        if error.status not in _REFUSALS:
            raise
        return [f"Deployment {namespace}/{name}: {error.message}."]
    target = former_target(deployment) if deployment is not None else None
    if deployment is not None and target is not None:
        await _bring(cluster, account, target, deployment, None, report, None)
    return report.refused


async def _bring(
    cluster: Cluster,
    account: str,
    target: Target,
    deployment: dict[str, Any],
    lower: Lower | None,
    report: TargetReport,
    before_change: Callable[[], Awaitable[None]] | None,
) -> None:
    name = deployment["metadata"]["name"]
    report.seen.add((target.namespace, name))
    for attempt in range(_TRIES):
        decision = decide(deployment, account, target, lower)
        if decision.model is not None and len(report.changed) >= _MOST_CHANGED:
            why = f"{_MOST_CHANGED} are changed already"
            report.refused.append(f"Deployment {target.namespace}/{name}: {why}.")
            return
        if decision.refusal is not None:
            report.refused.append(f"Deployment {target.namespace}/{name}: {decision.refusal}.")
            break
        try:
            if decision.operations:
                if decision.model is not None and before_change is not None:
                    await before_change()
                await cluster.json_patch(DEPLOYMENTS, target.namespace, name, decision.operations)
                _note(report, target, name, decision)
            break
        except ApiError as error:
            if error.status in _REFUSALS or attempt == _TRIES - 1:
                why = f"the API server refused the change: {error.message}"
                report.refused.append(f"Deployment {target.namespace}/{name}: {why}.")
                break
            if error.status not in _CONFLICTS:
                raise
            again = await cluster.get(DEPLOYMENTS, target.namespace, name)
            if again is None:
                return
            deployment = again
    if decision.model is not None:
        report.changed.append(
            ChangedTarget(namespace=target.namespace, name=name, model=decision.model)
        )


def _note(report: TargetReport, target: Target, name: str, decision: Decision) -> None:
    where = f"Deployment {target.namespace}/{name}"
    said = f"{where} was moved to {decision.model}" if decision.model else f"{where} was put back"
    report.moved.append(said)
    log.info(said, extra={"fields": {"variable": target.env}})
