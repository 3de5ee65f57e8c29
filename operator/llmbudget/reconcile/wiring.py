"""Kopf's part: it watches budgets, providers and Deployments, and puts keys on our queues.

Only `on.event` handlers: no finalizers, no annotations, no progress in the resources. Errors in
them would be logged and dropped, so they do nothing but pass on what they saw.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any, Final

import kopf

from llmbudget.api.meta import ANNOTATION_ALLOW_BUDGET, GROUP, VERSION
from llmbudget.reconcile.controller import Controller

_KINDS: Final = {"llmbudgets": "LLMBudget", "llmproviders": "LLMProvider"}
_WATCH_SECONDS: Final = 240


def registry(controller: Controller, stop: asyncio.Event) -> kopf.OperatorRegistry:
    """Build the handlers for one controller; `stop` is set by the signals that end the process."""
    handlers = kopf.OperatorRegistry()

    async def seen(type: str | None, body: kopf.Body, resource: kopf.Resource, **_: Any) -> None:  # noqa: ANN401
        kind = _KINDS[resource.plural]
        raw = dict(body) | {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind}
        if type == "DELETED":
            controller.drop(kind, raw)
        else:
            controller.put(kind, raw)

    async def target(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: ANN401
        controller.put_target(dict(body), gone=type == "DELETED")

    async def listen(**_: Any) -> None:  # noqa: ANN401
        # Kopf has taken the signals over by now, and would wait for tasks that it did not start.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    kopf.on.startup(registry=handlers, id="listen")(listen)
    kopf.on.login(registry=handlers, id="login")(_log_in)
    for plural in _KINDS:
        kopf.on.event(GROUP, VERSION, plural, registry=handlers, id=plural)(seen)
    kopf.on.event(
        "apps",
        "v1",
        "deployments",
        annotations={ANNOTATION_ALLOW_BUDGET: kopf.PRESENT},
        registry=handlers,
        id="targets",
    )(target)
    return handlers


def _log_in(**event: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401
    """Log in as the rest of the operator: by $KUBECONFIG, else as a pod. Kopf asks again when the
    API server refuses a token."""
    if os.environ.get("KUBECONFIG"):
        return kopf.login_with_kubeconfig(**event)
    return kopf.login_with_service_account(**event)


def settings() -> kopf.OperatorSettings:
    """Keep kopf to watching."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.watching.server_timeout = _WATCH_SECONDS
    chosen.watching.client_timeout = _WATCH_SECONDS + 30
    chosen.watching.reconnect_backoff = 1
    return chosen
