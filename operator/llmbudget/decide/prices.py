"""Where a model's prices come from: its provider's resource or, where that is silent, the list.

Prices are exact decimals in nano-USD for one token. The gateway gets them resolved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final

from llmbudget.api.costs import Cost, CostTier, OtherRates, ServiceTierCost
from llmbudget.api.money import parse_price
from llmbudget.api.provider import Protocol, ProviderModel, ProviderSpec
from llmbudget.contract.config import ImagePrice, Prices, Rates, RatesByLength
from llmbudget.decide.list_prices import list_prices
from llmbudget.decide.media import has_place, searches_by_itself
from llmbudget.decide.rates import by_length, dearest_of, multiplied, rates_by_length
from llmbudget.decide.vendors import Vendor, vendor_of
from llmbudget.decide.world import Provider

_THOUSAND: Final = Decimal(1000)
"""What a price for 1,000 is to one."""
_CACHE_WRITES: Final = {
    Protocol.OPENAI: (Decimal(1), Decimal(1)),
    Protocol.ANTHROPIC: (Decimal("1.25"), Decimal(2)),
}
"""What writing to a cache costs in multiples of the input's price, as Anthropic documents it."""
_PLACE: Final = "us"
_AT_PLACE: Final = Decimal("1.1")
"""What all tokens cost there in multiples of their price, as Anthropic documents it."""


def resolve_prices(model: ProviderModel, provider: ProviderSpec, at: datetime) -> Prices | None:
    """Find a model's prices: those of its provider's resource, else the list prices.

    None: nobody knows what the model costs, and calls to it must be refused.
    """
    upstream = model.upstream_name or model.name
    if searches_by_itself(upstream, model.name):
        return None
    if model.cost is not None:
        found: Prices | None = _written(model.cost, _CACHE_WRITES[provider.protocol])
    elif vendor_of(provider.endpoint, provider.api_version) is Vendor.AZURE:
        # A deployment may have any name, and its price depends on where and how it is deployed.
        found = None
    else:
        found = list_prices(provider.endpoint, upstream, at)
    if found is not None and provider.protocol is Protocol.ANTHROPIC and has_place(upstream):
        found = _with_place(found)
    search = provider.hosted.web_search_per_1k
    if found is None or search is None:
        return found
    return found.model_copy(update={"search": parse_price(search)})


def prices_of(provider: Provider, at: datetime) -> tuple[Prices | None, ...]:
    """Find the prices of all models of a provider, in their order, as `resolve_prices` does: once a
    minute, whoever asks."""
    return _prices_of(provider, at.replace(second=0, microsecond=0))


@lru_cache(maxsize=1024)
def _prices_of(provider: Provider, at: datetime) -> tuple[Prices | None, ...]:
    spec = provider.spec
    return () if spec is None else tuple(resolve_prices(m, spec, at) for m in spec.models)


def _with_place(usual: Prices) -> Prices:
    """Add what a model costs where a workspace has it run at one place: held at that, charged as
    the answer tells."""
    lengths: Mapping[int, Rates] = {tier.above: tier for tier in usual.tiers} or {0: usual}
    there = rates_by_length(
        {above: multiplied(rates, _AT_PLACE) for above, rates in lengths.items()}
    )
    return Prices.model_validate(
        usual.model_dump()
        | there.model_dump(exclude={"tiers"})
        | {
            "tiers": [rates.model_dump() | {"above": above} for above, rates in lengths.items()],
            "services": {**(usual.services or {}), _PLACE: there},
        }
    )


def _written(written: Cost, cache_writes: tuple[Decimal, Decimal]) -> Prices:
    """Convert the prices that a resource states."""
    texts = (written.input_per_1k or "0", written.output_per_1k or "0")
    lengths = {0: _rates(written, *texts, cache_writes)}
    lengths |= _long(written.long_context, cache_writes)
    per_1k, minute = written.per_1k_characters, written.per_minute
    images = [
        ImagePrice(price=_THOUSAND * parse_price(each.price), size=each.size, quality=each.quality)
        for each in written.per_image or ()
    ]
    services = {
        tier.name.value: _service(tier, lengths, cache_writes) for tier in written.service_tiers
    }
    return by_length(lengths).model_copy(
        update={
            "services": services or None,
            "tokens": written.input_per_1k is not None,
            "character": None if per_1k is None else parse_price(per_1k),
            "minute": None if minute is None else _THOUSAND * parse_price(minute),
            "images": tuple(images),
        }
    )


def _long(written: Iterable[CostTier], cache_writes: tuple[Decimal, Decimal]) -> dict[int, Rates]:
    """Convert the prices of long inputs, shortest first."""
    return {
        tier.above: _rates(tier, tier.input_per_1k, tier.output_per_1k, cache_writes)
        for tier in sorted(written, key=lambda tier: tier.above)
    }


def _service(
    written: ServiceTierCost, usual: Mapping[int, Rates], cache_writes: tuple[Decimal, Decimal]
) -> RatesByLength:
    """Convert a service tier's prices; of long inputs for which it states none, nobody knows
    whether they cost its own or the `usual` ones."""
    base = _rates(written, written.input_per_1k, written.output_per_1k, cache_writes)
    long = _long(written.long_context, cache_writes) or {
        above: Rates.model_validate(dearest_of((base, rates)))
        for above, rates in usual.items()
        if above
    }
    return rates_by_length({0: base} | long)


def _rates(
    written: OtherRates, text_in: str, text_out: str, cache_writes: tuple[Decimal, Decimal]
) -> Rates:
    """Convert the prices of one length; what is left out costs as its base rate, or as a multiple
    of it for what is written to a cache for minutes, and for an hour."""

    def rate(text: str | None, otherwise: Decimal) -> Decimal:
        return otherwise if text is None else parse_price(text)

    def media(text: str | None, uncached: str | None = None) -> Decimal | None:
        text = uncached if text is None else text
        return None if text is None else parse_price(text)

    base, out = parse_price(text_in), parse_price(text_out)
    write = rate(written.cache_write_per_1k, base * cache_writes[0])
    hour = rate(written.cache_write_hour_per_1k, max(write, base * cache_writes[1]))
    return Rates(
        input=base,
        output=out,
        cached_input=rate(written.cached_input_per_1k, base),
        cache_write=write,
        cache_write_hour=None if hour == write else hour,
        reasoning=rate(written.reasoning_per_1k, out),
        input_audio=media(written.input_audio_per_1k),
        cached_audio=media(written.cached_input_audio_per_1k, written.input_audio_per_1k),
        output_audio=media(written.output_audio_per_1k),
        input_image=media(written.input_image_per_1k),
        cached_image=media(written.cached_input_image_per_1k, written.input_image_per_1k),
        output_image=media(written.output_image_per_1k),
    )
