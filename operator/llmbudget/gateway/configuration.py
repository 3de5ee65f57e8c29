"""The configuration, followed live: no restart, no cut stream.

A document that can't be read leaves the last good one in force, and its generation then stays
unacknowledged, which the operator shows. The ledger takes caps over before calls see the routes
that go with them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import CONFIG_MAPS
from llmbudget.contract.config import CONFIG_KEY, GatewayConfig
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.routes import Routes, routes_of
from llmbudget.ledger.interface import Ledger, LedgerError
from llmbudget.telemetry import metrics
from llmbudget.telemetry.spans import Spans

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 2.0


class Configuration:
    """Follows one ConfigMap and holds what is in force."""

    def __init__(
        self,
        cluster: Cluster,
        ledger: Ledger,
        keys: Keys,
        spans: Spans,
        namespace: str,
        name: str,
        ca_directory: Path,
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._keys = keys
        self._spans = spans
        self._namespace = namespace
        self._name = name
        self._ca_directory = ca_directory
        self.document: GatewayConfig | None = None
        """As read last; it is in force once the ledger has taken it over."""
        self.routes: Routes | None = None
        """In force. None: there was none yet, and no call may go anywhere."""

    async def follow(self) -> None:
        """Watch until cancelled."""
        selector = f"metadata.name={self._name}"
        while True:
            try:
                events = self._cluster.watch(CONFIG_MAPS, self._namespace, field_selector=selector)
                async for event in events:
                    if event.type in ("ADDED", "MODIFIED"):
                        await self._take(event.object)
            except ApiError as error:
                # 401 or 403: the token may be renewed, the role may be about to be granted.
                log.warning("configuration", extra={"fields": {"why": str(error)}})
            await asyncio.sleep(_RETRY_SECONDS)

    async def _take(self, config_map: Mapping[str, Any]) -> None:
        try:
            config = parse(config_map)
        except ValueError as error:
            log.error("configuration refused", extra={"fields": {"why": str(error)}})
            return
        if self.routes is not None and config.generation < self.routes.config.generation:
            return
        self.document = config
        while True:
            try:
                await self._ledger.configure(
                    config.accounts, time_zone=config.time_zone, generation=config.generation
                )
                break
            except ValueError as error:
                log.error("configuration refused", extra={"fields": {"why": str(error)}})
                return
            except LedgerError as error:
                log.warning("configuration waits", extra={"fields": {"why": str(error)}})
                await asyncio.sleep(_RETRY_SECONDS)
        self._keys.configured(config.providers)
        self._spans.configure(config.tracing, allow_private=config.tracing_private)
        self.routes = routes_of(config, self._ca_directory, self.routes)
        metrics.CONFIG_GENERATION.set(config.generation)
        log.info("configuration", extra={"fields": {"generation": config.generation}})


def parse(config_map: Mapping[str, Any]) -> GatewayConfig:
    """Read the document in a ConfigMap.

    Raises:
        ValueError: it is missing or not valid; the message says where.
    """
    text = (config_map.get("data") or {}).get(CONFIG_KEY)
    if text is None:
        raise ValueError(f"the ConfigMap has no key {CONFIG_KEY}")
    try:
        return GatewayConfig.model_validate_json(text)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        ]
        raise ValueError("; ".join(problems[:5])) from None
