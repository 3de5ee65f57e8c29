"""The gateway's ConfigMap: its configuration, and the providers in the 371OS guide's form."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Final

from llmbudget.contract.config import (
    CONFIG_KEY,
    PROVIDERS_KEY,
    GatewayConfig,
    ProviderConfig,
    key_variable,
)
from llmbudget.decide.world import World
from llmbudget.render.names import Manifest, gateway, metadata

_NANO_PER_TOKEN: Final = Decimal(1_000_000)
"""Nano-USD for one token, divided by this, are USD for 1,000 tokens."""


def config_map(world: World, config: GatewayConfig) -> Manifest:
    """Build the ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(world, gateway(world.root)),
        "data": {
            CONFIG_KEY: config.to_json(),
            PROVIDERS_KEY: providers_json(config.providers),
        },
    }


def providers_json(providers: tuple[ProviderConfig, ...]) -> str:
    """Write the guide's providers.json: one object for each model that has a price for tokens."""
    rows: list[str] = []
    for provider in providers:
        for model in provider.models:
            if model.prices is None or not model.prices.tokens:
                continue
            fields = {
                "name": json.dumps(provider.name),
                "model": json.dumps(model.name),
                "cost_in": _number(model.prices.input),
                "cost_out": _number(model.prices.output),
                "max_context": str(model.max_context),
                "latency_ms": str(model.latency_ms),
                "endpoint_env": json.dumps(key_variable(provider.name)),
            }
            lines = ",\n".join(f'    "{name}": {value}' for name, value in fields.items())
            rows.append(f"  {{\n{lines}\n  }}")
    return "[\n" + ",\n".join(rows) + "\n]\n" if rows else "[]\n"


def _number(per_token: Decimal) -> str:
    """Write USD for 1,000 tokens as a JSON number, exactly."""
    text = f"{(per_token / _NANO_PER_TOKEN).normalize():f}"
    return text if "." in text else f"{text}.0"
