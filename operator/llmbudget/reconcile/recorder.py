"""Kubernetes Events, on transitions only."""

from __future__ import annotations

import logging
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from llmbudget.api.meta import API_VERSION
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import EVENTS
from llmbudget.decide.world import Budget

log = logging.getLogger(__name__)

CLAIM: Final = timedelta(seconds=20)
"""How long the writer of an Event has to tell people, before another does it."""
_MOST_NOTE: Final = 1024
_KEY_LENGTH: Final = 16
_CONTROLLER: Final = "llmbudget.io/operator"


class Claimed(Exception):
    """Another operator has begun to tell of it, a moment ago."""


class Recorder:
    """Writes Events about budgets. An Event that can't be written is logged, no more."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance

    async def record(
        self, budget: Budget, reason: str, action: str, note: str, *, warning: bool = False
    ) -> None:
        """Write one Event."""
        name = f"{budget.name}.{secrets.token_hex(8)}"
        try:
            await self._cluster.create(self._event(name, budget, reason, action, note, warning))
        except ApiError as error:
            log.warning("event not written: %s", error)

    async def record_once(
        self, key: str, budget: Budget, reason: str, action: str, note: str, *, warning: bool
    ) -> None:
        """Write the one Event of that key, whoever else tries to: its writer goes on to tell
        people, unless it dies.

        Raises:
            Claimed: another operator wrote it, and may be about to tell.
            ApiError: who wrote it can't be read.
        """
        name = f"{budget.name}.{key[:_KEY_LENGTH]}"
        event = self._event(name, budget, reason, action, note, warning)
        try:
            await self._cluster.create(event)
        except ApiError as error:
            if error.status != 409:
                log.warning("event not written: %s", error)
                return
            found = await self._cluster.get(EVENTS, budget.namespace, name)
            if found is None or found.get("reportingInstance") == self._instance:
                return
            written = datetime.fromisoformat(found["eventTime"])
            if datetime.now(UTC) - written < CLAIM:
                raise Claimed(f"{found['reportingInstance']} is telling of it") from None

    def _event(
        self, name: str, budget: Budget, reason: str, action: str, note: str, warning: bool
    ) -> dict[str, Any]:
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": budget.namespace},
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
