"""Kopf's part: it watches budgets, providers and the Lease, and tells the controller.

Only `on.event` handlers: no finalizers, no annotations, no progress in the resources. Errors in
them would be logged and dropped, so they do nothing but pass on what they saw.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import kopf

from llmbudget.api.meta import GROUP, VERSION
from llmbudget.clients.cluster import PAGE
from llmbudget.clients.kinds import LEASES
from llmbudget.reconcile.controller import Controller
from llmbudget.reconcile.election import LEASE_NAME
from llmbudget.reconcile.health import Health

_KINDS: Final = {"llmbudgets": "LLMBudget", "llmproviders": "LLMProvider"}
_HEARTBEAT: Final = ("coordination.k8s.io", "v1", "leases")
_WATCH_SECONDS: Final = 240
_LOGIN_SECONDS: Final = 5.0
"""Between logins, at least."""
_LOGIN_LASTS: Final = timedelta(days=1)
_IDLE_SECONDS: Final = 0.1
_BACKOFF: Final = (1, 2, 4, 8, 15)
"""Seconds between tries of a list or a watch: the last for ever, for a watch must not give up."""


class _Backoffs:
    """Pauses without end, as kopf wants them: to be iterated over anew for each request."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(_BACKOFF, itertools.repeat(_BACKOFF[-1]))


class _NoMemory(kopf.DiffBaseStorage):
    """Keeps nothing to compare with: kopf would copy every object several times for handlers of
    changes, and there are none."""

    def build(self, **_: Any) -> kopf.BodyEssence:  # noqa: ANN401
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:  # noqa: ANN401
        return None

    def store(self, **_: Any) -> None:  # noqa: ANN401
        return None


class Watches:
    """Kopf, run with handlers for one controller."""

    def __init__(
        self,
        controller: Controller,
        health: Health,
        stop: asyncio.Event,
        namespaces: tuple[str, ...] = (),
    ) -> None:
        self.relisted = asyncio.Event()
        """Set when a watch has begun anew."""
        self._controller = controller
        self._health = health
        self._stop = stop
        """Set by the signals that end the process."""
        self._namespaces = namespaces
        """The only ones that are watched; none: all are."""
        self._next_login = 0.0

    async def run(self) -> None:
        """Watch until cancelled, or until a watch ends for good, which ends kopf."""
        ready = asyncio.Event()
        listening = asyncio.create_task(self._listen(ready))
        try:
            await kopf.operator(
                registry=self._registry(),
                settings=_settings(),
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                standalone=True,
                ready_flag=ready,
            )
        finally:
            listening.cancel()

    def _registry(self) -> kopf.OperatorRegistry:
        handlers = kopf.OperatorRegistry()
        kopf.on.login(registry=handlers, id="login")(self._log_in)
        for plural in _KINDS:
            kopf.on.event(GROUP, VERSION, plural, registry=handlers, id=plural)(self._resource)
        kopf.on.event(*_HEARTBEAT, registry=handlers, id="heartbeat")(self._heartbeat)
        return handlers

    async def _log_in(self, **event: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401
        """Log in as the rest of the operator: by $KUBECONFIG, else as a pod. Kopf asks again when
        the API server refuses a token."""
        pause = self._next_login - time.monotonic()
        await asyncio.sleep(max(0.0, pause))
        self._next_login = time.monotonic() + _LOGIN_SECONDS
        if os.environ.get("KUBECONFIG"):
            found = kopf.login_with_kubeconfig(**event)
        else:
            found = kopf.login_with_service_account(**event)
        if found is None:
            return None
        # Kopf ends when it is given what was refused before, though the API server may have been
        # unable to tell: let it look new.
        return dataclasses.replace(found, expiration=datetime.now(UTC) + _LOGIN_LASTS)

    async def _listen(self, ready: asyncio.Event) -> None:
        await ready.wait()
        # Kopf has taken the signals over by now, and would end as if by itself.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)

    async def _resource(
        self,
        type: str | None,
        body: kopf.Body,
        resource: kopf.Resource,
        **_: Any,  # noqa: ANN401
    ) -> None:
        kind = _KINDS[resource.plural]
        raw = dict(body) | {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind}
        self._health.seen(kind, raw)
        if type == "DELETED":
            self._controller.drop(kind, raw)
        else:
            self._controller.put(kind, raw)
        if type is None:
            self.relisted.set()

    async def _heartbeat(self, body: kopf.Body, **_: Any) -> None:  # noqa: ANN401
        self._health.seen(LEASES.kind, body)


def _settings() -> kopf.OperatorSettings:
    """Keep kopf to watching."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.watching.server_timeout = _WATCH_SECONDS
    chosen.watching.client_timeout = _WATCH_SECONDS + 30
    chosen.watching.reconnect_backoff = 1
    chosen.watching.chunk_size = PAGE
    # Until it ends, an object's worker holds what it was told last, and there is one for each.
    chosen.queueing.idle_timeout = _IDLE_SECONDS
    chosen.watching.field_selectors[_HEARTBEAT] = f"metadata.name={LEASE_NAME}"
    chosen.persistence.diffbase_storage = _NoMemory()
    chosen.networking.error_backoffs = _Backoffs()
    return chosen
