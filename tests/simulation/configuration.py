"""The providers and budgets of a run with whole gateways."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from llmbudget.api.budget import Action
from llmbudget.api.credentials import KeyHeader
from llmbudget.api.provider import Protocol
from llmbudget.contract.config import (
    AccountConfig,
    ConsumerConfig,
    GatewayConfig,
    ModelConfig,
    Prices,
    ProviderConfig,
    Threshold,
)

ROOT, TEAM = "llm/org", "llm/team"


def _model(name: str, price_in: int, price_out: int) -> ModelConfig:
    one, two = Decimal(price_in), Decimal(price_out)
    return ModelConfig(
        name=name,
        upstream_name=name,
        prices=Prices(input=one, output=two, cached_input=one, cache_write=one, reasoning=two),
        max_context=8_000,
        max_output=400,
        default_max_output=100,
        latency_ms=1,
    )


def _provider(name: str, *models: ModelConfig) -> ProviderConfig:
    return ProviderConfig(
        name=name,
        protocol=Protocol.OPENAI,
        endpoint=f"https://{name}.example/v1",
        allow_private=False,
        key_header=KeyHeader.AUTHORIZATION,
        models=models,
        connect_timeout_ms=1,
        idle_timeout_ms=1,
        total_timeout_ms=1,
        bills_errors=False,
    )


LARGE, SMALL = _model("large", 3_000, 15_000), _model("small", 150, 600)
PROVIDERS: Final = (_provider("north", LARGE, SMALL), _provider("south", SMALL))


def configuration(generation: int, root_cap: int, team_cap: int) -> GatewayConfig:
    """Make the gateways' configuration, with caps in nano-USD."""
    names = tuple(provider.name for provider in PROVIDERS)
    root = AccountConfig(name=ROOT, cap_nano=root_cap, providers=names)
    team = AccountConfig(
        name=TEAM,
        parent=ROOT,
        cap_nano=team_cap,
        ladder=("large", "small"),
        thresholds=(
            Threshold(percentage=50, action=Action.NOTIFY_ADMIN),
            Threshold(percentage=80, action=Action.DOWNGRADE_MODELS),
        ),
        providers=names,
        consumers=(ConsumerConfig(namespace="apps"),),
    )
    return GatewayConfig(
        generation=generation,
        root=ROOT,
        operator="llmbudget-system/llmbudget-operator",
        accounts=(root, team),
        providers=PROVIDERS,
        endpoints=(),
    )
