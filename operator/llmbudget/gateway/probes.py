"""Endpoints for those who watch: /livez and /readyz for the kubelet, /health, /metrics."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric

from llmbudget.api.money import NANO_PER_USD
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.contract.config import EndpointConfig, GatewayConfig
from llmbudget.gateway.identity import Identities
from llmbudget.gateway.limits import ClientLimits
from llmbudget.gateway.protocols.errors import forbidden, unavailable
from llmbudget.gateway.wire import Headers, Request
from llmbudget.ledger.interface import Ledger
from llmbudget.telemetry import metrics

_DEFAULTS: Final = {
    "/metrics": EndpointConfig(path="/metrics", auth_required=True, per_minute=100),
    "/health": EndpointConfig(path="/health", auth_required=False, per_minute=60),
}
JSON: Final[Headers] = [("content-type", "application/json")]


class Monitoring:
    """Serves /health and /metrics, each with the limit and authentication that are configured."""

    def __init__(self, cluster: Cluster, ledger: Ledger) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._identities = Identities(cluster, None)
        self._limits: dict[EndpointConfig, ClientLimits] = {}

    async def admit(self, request: Request, config: GatewayConfig | None) -> None:
        """Let a request pass.

        Raises:
            Refusal: 401, 403, 429 or 503.
        """
        endpoint = _endpoint(request.path, config)
        limits = self._limits.get(endpoint)
        if limits is None:
            limits = self._limits[endpoint] = ClientLimits(endpoint.per_minute, time.monotonic)
        limits.check(request.client)
        limits.count(request.client)
        if endpoint.auth_required:
            await self._authorise(request)

    async def _authorise(self, request: Request) -> None:
        identity = await self._identities.identify(request.token, request.client)
        try:
            allowed = await self._cluster.review_access(
                identity.user, identity.groups, "get", request.path
            )
        except ApiError:
            raise unavailable("The API server can't review access now.") from None
        if not allowed:
            message = f"{identity.user} may not get {request.path} (a nonResourceURL in RBAC)."
            raise forbidden(message, "forbidden")

    def metrics(self, config: GatewayConfig | None) -> tuple[Headers, bytes]:
        """Write all metrics, balances as they are now."""
        self._look(config)
        return [("content-type", CONTENT_TYPE_LATEST)], generate_latest(metrics.REGISTRY)

    def families(self, config: GatewayConfig | None) -> list[Metric]:
        """List all metrics, balances as they are now."""
        self._look(config)
        return list(metrics.REGISTRY.collect())

    def _look(self, config: GatewayConfig | None) -> None:
        """Set the gauges that nobody keeps; an account that has gone, or its cap, leaves none."""
        for gauge in metrics.OF_BALANCES:
            gauge.clear()
        for name, balance in self._ledger.balances().items():
            metrics.SPENT.labels(name).set(balance.spent / NANO_PER_USD)
            metrics.HELD.labels(name).set(balance.held / NANO_PER_USD)
            metrics.LENT.labels(name).set(balance.lent / NANO_PER_USD)
            metrics.LEVEL.labels(name).set(balance.level)
            if balance.cap is not None:
                metrics.CAP.labels(name).set(balance.cap / NANO_PER_USD)
            if balance.remaining is not None:
                metrics.REMAINING.labels(name).set(balance.remaining / NANO_PER_USD)
        if config is not None:
            metrics.ENVELOPES.labels(config.root).set(self._ledger.open_envelopes())


def _endpoint(path: str, config: GatewayConfig | None) -> EndpointConfig:
    configured = config.endpoints if config is not None else ()
    return next((e for e in configured if e.path == path), _DEFAULTS[path])
