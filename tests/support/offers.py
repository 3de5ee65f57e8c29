"""One model at one provider, as routing finds it."""

from __future__ import annotations

from decimal import Decimal

from llmbudget.api.credentials import KeyHeader
from llmbudget.api.provider import Protocol
from llmbudget.contract.config import ModelConfig, Prices, ProviderConfig
from llmbudget.decide.catalogue import Offer


def offer(
    name: str = "gpt-4o-mini", owner: str = "openrouter", host: str = "router.example"
) -> Offer:
    one = Decimal(1)
    model = ModelConfig(
        name=name,
        upstream_name=f"upstream/{name}",
        prices=Prices(input=one, output=one, cached_input=one, cache_write=one, reasoning=one),
        max_context=128_000,
        max_output=16_384,
        default_max_output=4096,
        latency_ms=1,
    )
    provider = ProviderConfig(
        name=owner,
        protocol=Protocol.OPENAI,
        endpoint=f"https://{host}/v1",
        allow_private=False,
        key_header=KeyHeader.AUTHORIZATION,
        models=(model,),
        connect_timeout_ms=1,
        idle_timeout_ms=1,
        total_timeout_ms=1,
        bills_errors=False,
        errors_by_host=True,
    )
    return Offer(provider, model)
