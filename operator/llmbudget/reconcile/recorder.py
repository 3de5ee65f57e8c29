"""Kubernetes Events, on transitions only."""

from __future__ import annotations

import logging
import secrets
from datetime import UTC, datetime
from typing import Final

from llmbudget.api.meta import API_VERSION
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.decide.world import Budget

log = logging.getLogger(__name__)

_MOST_NOTE: Final = 1024
_CONTROLLER: Final = "llmbudget.io/operator"


class Recorder:
    """Writes Events about budgets. An Event that can't be written is logged, no more."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance

    async def record(
        self, budget: Budget, reason: str, action: str, note: str, *, warning: bool = False
    ) -> None:
        """Write one Event."""
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{budget.name}.{secrets.token_hex(8)}",
                "namespace": budget.namespace,
            },
            "eventTime": datetime.now(UTC).isoformat(timespec="microseconds"),
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "action": action,
            "note": note[:_MOST_NOTE],
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": "LLMBudget",
                "name": budget.name,
                "namespace": budget.namespace,
                "uid": budget.uid,
            },
            "reportingController": _CONTROLLER,
            "reportingInstance": self._instance,
        }
        try:
            await self._cluster.create(event)
        except ApiError as error:
            log.warning("event not written: %s", error)
