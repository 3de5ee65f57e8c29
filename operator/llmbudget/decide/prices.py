"""What a call costs, and where a model's prices come from.

Prices are exact decimals in nano-USD for one token; a cost is computed exactly and rounded up
once. Prices come from the provider's resource or, where that is silent, from the list prices of
the genai-prices package, which only the operator reads: the gateway gets them resolved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal, Inexact
from typing import TYPE_CHECKING, Final

from llmbudget.api.money import Nano, parse_price, round_up
from llmbudget.api.provider import Cost, CostRates, Protocol, ProviderModel, ProviderSpec
from llmbudget.contract.config import Prices, Rates, Tier

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

_EXACT: Final = Context(prec=60, traps=[Inexact])
_NANO_PER_TOKEN: Final = Decimal(1000)
"""USD for a million tokens, times this, are nano-USD for one token."""

_INPUT: Final = "input_mtok"
_OUTPUT: Final = "output_mtok"
_CACHE_READ: Final = "cache_read_mtok"
_CACHE_WRITE: Final = "cache_write_mtok"
_CACHE_WRITE_HOUR: Final = "cache_write_1h_mtok"
_REASONING: Final = "output_reasoning_mtok"
_CACHE_WRITES: Final = {
    Protocol.OPENAI: (Decimal(1), Decimal(1)),
    Protocol.ANTHROPIC: (Decimal("1.25"), Decimal(2)),
}
"""What writing to a cache costs in multiples of the input's price, as Anthropic documents it."""
_UNBOUNDED: Final = frozenset(
    {"requests_kcount", "output_citation_mtok", "input_mchars", "input_text_messages_kcount"}
    | {"output_image_mtok", "output_audio_mtok", "output_video_mtok"}
)
"""Charges that every call incurs and that prices for tokens can't say."""
_SEARCHING: Final = ("search", "research", "sonar")
"""Models named so search the web by themselves, and each search is charged."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one call used.

    `tokens_in` includes `cached` and `cache_write`, which includes `cache_write_hour`: what is
    written to a cache that lasts for an hour; `tokens_out` includes `reasoning`.
    """

    tokens_in: int
    tokens_out: int
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    cache_write_hour: int = 0


def cost(usage: Usage, prices: Prices) -> Nano:
    """Compute what a call costs in nano-USD, at the rates of its length: exact, rounded up once."""
    rates, fma = prices.charged(usage.tokens_in), _EXACT.fma
    total = fma(usage.tokens_in - usage.cached - usage.cache_write, rates.input, Decimal(0))
    total = fma(usage.cached, rates.cached_input, total)
    total = fma(usage.cache_write - usage.cache_write_hour, rates.cache_write, total)
    total = fma(usage.cache_write_hour, rates.hour, total)
    total = fma(usage.tokens_out - usage.reasoning, rates.output, total)
    return round_up(fma(usage.reasoning, rates.reasoning, total))


def resolve_prices(model: ProviderModel, provider: ProviderSpec, at: datetime) -> Prices | None:
    """Find a model's prices: those of its provider's resource, else the list prices.

    None: nobody knows what the model costs, and calls to it must be refused.
    """
    if model.cost is not None:
        return _written(model.cost, _CACHE_WRITES[provider.protocol])
    return list_prices(provider.endpoint, model.upstream_name or model.name, at)


def _written(written: Cost, cache_writes: tuple[Decimal, Decimal]) -> Prices:
    """Convert the prices that a resource states."""
    longer = sorted(written.long_context, key=lambda tier: tier.above)
    return by_length(
        {0: _rates(written, cache_writes)} | {t.above: _rates(t, cache_writes) for t in longer}
    )


def _rates(written: CostRates, cache_writes: tuple[Decimal, Decimal]) -> Rates:
    """Convert the prices of one length; what is left out costs as its base rate, or as a multiple
    of it for what is written to a cache for minutes, and for an hour."""

    def rate(text: str | None, otherwise: Decimal) -> Decimal:
        return otherwise if text is None else parse_price(text)

    base, out = parse_price(written.input_per_1k), parse_price(written.output_per_1k)
    write = rate(written.cache_write_per_1k, base * cache_writes[0])
    hour = rate(written.cache_write_hour_per_1k, max(write, base * cache_writes[1]))
    return Rates(
        input=base,
        output=out,
        cached_input=rate(written.cached_input_per_1k, base),
        cache_write=write,
        cache_write_hour=None if hour == write else hour,
        reasoning=rate(written.reasoning_per_1k, out),
    )


def by_length(lengths: Mapping[int, Rates]) -> Prices:
    """Join the rates of each length, shortest first, and put the dearest of each before them."""
    found = list(lengths.values())
    write, hour = max(r.cache_write for r in found), max(r.hour for r in found)
    tiers = [Tier(above=above, **rates.model_dump()) for above, rates in lengths.items()]
    return Prices(
        input=max(rates.input for rates in found),
        output=max(rates.output for rates in found),
        cached_input=max(rates.cached_input for rates in found),
        cache_write=write,
        cache_write_hour=None if hour == write else hour,
        reasoning=max(rates.reasoning for rates in found),
        tiers=tuple(tiers) if len(tiers) > 1 else (),
    )


def list_prices(endpoint: str, model: str, at: datetime) -> Prices | None:
    """Look up list prices by the endpoint's URL and the provider's own name for the model.

    Where a price depends on the time of day, this is the dearest one. None: the endpoint or the
    model is unknown, or a call to it costs more than its tokens (charged by request, or searching
    the web on its own).
    """
    # Half a second and 1.6 MB of tables, which a gateway never needs.
    from genai_prices.data_snapshot import get_snapshot

    if any(word in model.lower() for word in _SEARCHING):
        return None
    try:
        _, found = get_snapshot().find_provider_model(model, None, None, endpoint)
    except LookupError:
        return None
    tables = [vars(table) for table in _in_force(found, at)]
    if any(table.get(key) is not None for table in tables for key in _UNBOUNDED):
        return None
    return _listed(tables)


def _in_force(model: ModelInfo, at: datetime) -> Iterator[ModelPrice]:
    """List the price tables that may apply on the day: later ones replace earlier ones, but one
    that holds for some hours of the day only stands beside what it replaces."""
    from genai_prices.types import ModelPrice, TimeOfDateConstraint

    if isinstance(model.prices, ModelPrice):
        yield model.prices
        return
    for conditional in reversed(model.prices):
        constraint = conditional.constraint
        hourly = isinstance(constraint, TimeOfDateConstraint)
        if constraint is None or hourly or constraint.active(at):
            yield conditional.prices
            if not hourly:
                return


def _listed(tables: list[dict[str, object]]) -> Prices | None:
    """Convert tables, of which any may apply, for each length at which a tier begins."""
    from genai_prices.types import TieredPrices

    tiered = [p for table in tables for p in table.values() if isinstance(p, TieredPrices)]
    starts = {0} | {tier.start for price in tiered for tier in price.tiers}
    found = {start: _rates_above(start, tables) for start in sorted(starts)}
    lengths = {start: rates for start, rates in found.items() if rates is not None}
    return by_length(lengths) if lengths else None


def _rates_above(length: int, tables: list[dict[str, object]]) -> Rates | None:
    """Take each rate's highest value over the tables, for an input of more tokens than `length`."""

    def rate(key: str) -> Decimal | None:
        rates = [_rate_above(length, table.get(key)) for table in tables]
        return max((rate for rate in rates if rate is not None), default=None)

    base, out = rate(_INPUT), rate(_OUTPUT)
    if base is None or out is None:
        return None

    def nano(found: Decimal | None, otherwise: Decimal) -> Decimal:
        return _EXACT.multiply(otherwise if found is None else found, _NANO_PER_TOKEN)

    write, hour = nano(rate(_CACHE_WRITE), base), nano(rate(_CACHE_WRITE_HOUR), Decimal(0))
    return Rates(
        input=nano(base, base),
        output=nano(out, out),
        cached_input=nano(rate(_CACHE_READ), base),
        cache_write=write,
        cache_write_hour=hour if hour > write else None,
        reasoning=nano(rate(_REASONING), out),
    )


def _rate_above(length: int, price: object) -> Decimal | None:
    """Tell a price in USD for a million tokens, for an input of more tokens than `length`."""
    from genai_prices.types import TieredPrices

    if isinstance(price, TieredPrices):
        reached = [tier.price for tier in price.tiers if tier.start <= length]
        return reached[-1] if reached else price.base
    return price if isinstance(price, Decimal) else None
