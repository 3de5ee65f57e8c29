"""What one configuration says, indexed for calls: swapped as a whole when it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmbudget.contract.config import GatewayConfig
from llmbudget.decide.catalogue import Catalogue, catalogues
from llmbudget.decide.consumers import Consumers
from llmbudget.gateway.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Routes:
    """One configuration, ready for use."""

    config: GatewayConfig
    consumers: Consumers
    catalogues: Mapping[str, Catalogue]
    """By account."""
    upstreams: Mapping[str, Upstream]
    """By provider."""


def routes_of(config: GatewayConfig, ca_directory: Path, before: Routes | None) -> Routes:
    """Index a configuration; connections of providers that did not change are kept."""
    kept = before.upstreams if before else {}
    upstreams = {
        provider.name: kept[provider.name]
        if provider.name in kept and kept[provider.name].provider == provider
        else Upstream(provider, ca_directory)
        for provider in config.providers
    }
    return Routes(config, Consumers(config.accounts), catalogues(config), upstreams)
