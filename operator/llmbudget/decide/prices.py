"""What a call costs, and where a model's prices come from.

Prices are exact decimals in nano-USD for one token; a cost is computed exactly and rounded up
once. Prices come from the provider's resource or, where that is silent, from the list prices of
the genai-prices package, which only the operator reads: the gateway gets them resolved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import ROUND_CEILING, Context, Decimal, Inexact
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from llmbudget.api.costs import Cost, CostTier, OtherRates, ServiceTierCost
from llmbudget.api.money import NANO_PER_USD, Nano, parse_price, round_up
from llmbudget.api.provider import Protocol, ProviderModel, ProviderSpec
from llmbudget.api.values import value
from llmbudget.contract.config import COUNTERPARTS, ImagePrice, Prices, Rates, RatesByLength, Tier
from llmbudget.decide.media import has_place, searches_by_itself
from llmbudget.decide.vendors import Vendor, vendor_of
from llmbudget.decide.world import Provider

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

_EXACT: Final = Context(prec=60, traps=[Inexact])
_NANO_PER_TOKEN: Final = Decimal(1000)
"""USD for a million tokens, times this, are nano-USD for one token."""

_THOUSAND: Final = Decimal(1000)
"""What a price for 1,000 is to one."""

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
_PLACE: Final = "us"
_AT_PLACE: Final = Decimal("1.1")
"""What all tokens cost there in multiples of their price, as Anthropic documents it."""
_MEDIA: Final = {
    **{"input_audio": "input_audio_mtok", "cached_audio": "cache_audio_read_mtok"},
    **{"output_audio": "output_audio_mtok", "output_image": "output_image_mtok"},
    **{"input_image": "input_image_mtok", "cached_image": "cache_image_read_mtok"},
}
_OF_INPUT: Final = frozenset({"input_audio", "cached_audio", "input_image", "cached_image"})
_UNCACHED: Final = {"cached_audio": "input_audio", "cached_image": "input_image"}
_CHARACTERS: Final = "input_mchars"
_HOURS: Final = "input_audio_hours"
_UNBOUNDED: Final = frozenset(
    {"requests_kcount", "output_citation_mtok", "output_video_mtok", "input_text_messages_kcount"}
)
"""Charges that every call incurs and that no price here can say."""
_BILLS_ALL_SECONDS: Final = "openai"
"""Others charge for some seconds at least, which the list does not tell."""
_MILLISECONDS: Final = 60_000
"""Of a minute."""
_EMBEDS: Final = "embed"
_DRAWS: Final = re.compile("image|banana")
_DRAWS_ALONE: Final = re.compile(r"(^|/)gpt-image-\d")
"""Models that write nothing but images, so that the price of their output is an image's."""
_SPEAKS: Final = "tts"
"""Models named so write nothing but sound."""
_SEARCHING: Final = ("search", "research", "sonar", ":online")
"""Models named so search the web by themselves, and each search is charged."""


@value
class MediaTokens:
    """Tokens of a call that are no text. Those read from a cache are in the cached figures only."""

    input_audio: int = 0
    cached_audio: int = 0
    output_audio: int = 0
    input_image: int = 0
    cached_image: int = 0
    output_image: int = 0
    of_input: bool = True
    """Whether anybody said which tokens of the input are no text."""
    of_output: bool = True
    """Likewise of the output."""

    def untold(self, kinds: frozenset[str]) -> frozenset[str]:
        """List those of the kinds that nobody said anything of."""
        left = frozenset() if self.of_input else kinds & _OF_INPUT
        return left if self.of_output else left | (kinds - _OF_INPUT)


@value
class Units:
    """What a call used, or may use at most, that is counted otherwise than by tokens."""

    milliseconds: int | None = 0
    """Of audio read; None: nobody knows."""
    characters: int = 0
    """Spoken."""
    images: int | None = 0
    """Made; None: nobody knows."""
    size: str | None = None
    """Of the images, as the caller asked; None: any."""
    quality: str | None = None
    """Likewise."""
    searches: int | None = 0
    """Of the web, by the provider; None: nobody knows."""


@value
class Usage:
    """What one call used.

    `tokens_in` includes `cached` and `cache_write`, which includes `cache_write_hour`: what is
    written to a cache that lasts for an hour; `tokens_out` includes `reasoning`. `media` None:
    nobody said which of the tokens are no text.
    """

    tokens_in: int
    tokens_out: int
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    cache_write_hour: int = 0
    media: MediaTokens | None = None
    units: Units | None = None
    services: tuple[str, ...] = ()
    """Service tiers that it may have been served in, "" for the usual one; empty: the usual one.
    Where one has no price, what the call cost is not `told`."""
    reported: Nano | None = Nano(0)
    """What the answer says that the call costs, in nano-USD; 0: nothing; None: no amount."""


def cost(usage: Usage, prices: Prices, kinds: frozenset[str] = frozenset()) -> Nano:
    """Compute what a call costs in nano-USD, at the rates of its length: exact, rounded up once.

    `kinds` names the rates that may apply beside those of text: where the provider does not tell
    the tokens of each, all are charged the dearest. So is the dearest of the service tiers.
    """
    usual = prices.charged(usage.tokens_in)
    if not usage.services:
        return _at(usual, usage, prices, kinds)
    services = prices.services or {}
    may_apply = [
        services[name].charged(usage.tokens_in) if name in services else usual
        for name in usage.services
    ]
    return max(_at(rates, usage, prices, kinds) for rates in may_apply)


def _at(rates: Rates, usage: Usage, prices: Prices, kinds: frozenset[str]) -> Nano:
    fma = _EXACT.fma
    total = _EXACT.multiply(usage.tokens_in - usage.cached - usage.cache_write, rates.input)
    total = fma(usage.tokens_out - usage.reasoning, rates.output, total)
    # Most calls have none of these, and each product costs more than to look.
    if usage.cached:
        total = fma(usage.cached, rates.cached_input, total)
    if usage.cache_write:
        total = fma(usage.cache_write - usage.cache_write_hour, rates.cache_write, total)
        total = fma(usage.cache_write_hour, rates.hour, total)
    if usage.reasoning:
        total = fma(usage.reasoning, rates.reasoning, total)
    if usage.media is not None:
        for kind in _MEDIA:
            total = fma(getattr(usage.media, kind), _beyond(rates, kind), total)
        kinds = usage.media.untold(kinds)
    if kinds:
        total = _EXACT.add(total, _untold(usage, rates, kinds))
    return round_up(total) if usage.units is None else with_units(total, usage.units, prices)


def _untold(usage: Usage, rates: Rates, kinds: frozenset[str]) -> Decimal:
    """Tell what tokens may cost beyond text where nobody said which are none."""
    # What is written to a cache, and thoughts, have prices of their own.
    fresh = usage.tokens_in - usage.cached - usage.cache_write
    said = usage.tokens_out - usage.reasoning
    counts = {"input": fresh, "cached_input": usage.cached, "output": said}
    beyond: dict[str, Decimal] = {}
    for kind in kinds:
        if getattr(rates, kind) is not None:
            text = COUNTERPARTS[kind]
            beyond[text] = max(beyond.get(text, Decimal(0)), _beyond(rates, kind))
    total = Decimal(0)
    for text, each in beyond.items():
        total = _EXACT.fma(counts[text], each, total)
    return total


def _beyond(rates: Rates, kind: str) -> Decimal:
    """Tell what a token of a kind costs beyond one of text."""
    return _EXACT.subtract(rates.effective(kind), rates.effective(COUNTERPARTS[kind]))


def with_units(tokens: Decimal, units: Units, prices: Prices) -> Nano:
    """Add to what a call's tokens cost what else is counted, rounded up once.

    Raises:
        NoImagePrice: no price fits the images.
    """
    total = _EXACT.fma(units.characters, prices.character or Decimal(0), tokens)
    total = _EXACT.fma(units.searches or 0, prices.search or Decimal(0), total)
    if units.images and prices.images:
        total = _EXACT.fma(units.images, image_price(units, prices), total)
    # A minute's price has no exact part of a second: the sum is rounded up before it is divided,
    # which gives the same as rounding after.
    minutes = _EXACT.multiply(units.milliseconds or 0, prices.minute or Decimal(0))
    return Nano(-(-round_up(_EXACT.fma(total, _MILLISECONDS, minutes)) // _MILLISECONDS))


def told(usage: Usage, prices: Prices) -> bool:
    """Tell whether a usage says all that is charged, by prices that are known."""
    if any(name and name not in (prices.services or {}) for name in usage.services):
        return False
    units = usage.units
    if units is None:
        return True
    return not (
        (prices.tokens and not usage.tokens_in + usage.tokens_out)
        or (prices.minute is not None and units.milliseconds is None)
        or (prices.images and units.images is None)
        or units.searches is None
    )


class NoImagePrice(Exception):
    """No price fits the size and the quality that are asked for."""


def image_price(units: Units, prices: Prices) -> Decimal:
    """Tell the dearest price of one image that fits what was asked for.

    Raises:
        NoImagePrice.
    """
    asked = ((units.size, "size"), (units.quality, "quality"))
    fitting = [
        image.price
        for image in prices.images
        if all(want is None or getattr(image, of) in (None, want) for want, of in asked)
    ]
    if not fitting:
        raise NoImagePrice
    return max(fitting)


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
    there = _by_length({above: _times(rates, _AT_PLACE) for above, rates in lengths.items()})
    return Prices.model_validate(
        usual.model_dump()
        | there.model_dump(exclude={"tiers"})
        | {
            "tiers": [rates.model_dump() | {"above": above} for above, rates in lengths.items()],
            "services": {**(usual.services or {}), _PLACE: there},
        }
    )


def _times(rates: Rates, factor: Decimal) -> Rates:
    given = {name: getattr(rates, name) for name in Rates.model_fields}
    return Rates.model_validate(
        {name: rate and _EXACT.multiply(rate, factor) for name, rate in given.items()}
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
        above: Rates.model_validate(_dearest((base, rates)))
        for above, rates in usual.items()
        if above
    }
    return _by_length({0: base} | long)


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


def by_length(lengths: Mapping[int, Rates]) -> Prices:
    """Make prices of the rates of each length, shortest first."""
    return Prices.model_validate(_by_length(lengths).model_dump())


def _by_length(lengths: Mapping[int, Rates]) -> RatesByLength:
    """Join the rates of each length, shortest first, and put the dearest of each before them."""
    tiers = [Tier(above=above, **rates.model_dump()) for above, rates in lengths.items()]
    dearest = _dearest(lengths.values())
    return RatesByLength.model_validate(dearest | {"tiers": tuple(tiers) if len(tiers) > 1 else ()})


def _dearest(found: Collection[Rates]) -> dict[str, object]:
    """Take each rate's highest value."""
    dearest: dict[str, object] = {
        name: max(rates.effective(name) for rates in found) for name in Rates.model_fields
    }
    for name, other in COUNTERPARTS.items():
        dearest[name] = None if dearest[name] == dearest[other] else dearest[name]
    return dearest


def list_prices(endpoint: str, model: str, at: datetime) -> Prices | None:
    """Look up list prices by the endpoint's URL and the provider's own name for the model.

    Where a price depends on the time of day, this is the dearest one. None: the endpoint or the
    model is unknown, or a call to it costs more than its tokens (charged by request, or searching
    the web on its own), or it draws and the list has no price for that. Sound of which the list has
    no price is `unpriced`.
    """
    # Half a second and 1.6 MB of tables, which a gateway never needs.
    from genai_prices.data_snapshot import get_snapshot

    if any(word in model.lower() for word in _SEARCHING):
        return None
    try:
        provider, found = get_snapshot().find_provider_model(model, None, None, endpoint)
    except LookupError:
        return None
    tables = [vars(table) for table in _in_force(found, at)]
    if any(table.get(key) is not None for table in tables for key in _UNBOUNDED):
        return None
    if _EMBEDS in model.lower():
        # They write nothing, which is why nobody lists what that costs.
        tables = [{_OUTPUT: table.get(_INPUT)} | table for table in tables]
    draws = _DRAWS.search(model.lower()) and not _DRAWS_ALONE.search(model.lower())
    if draws and not _all_have(tables, "output_image"):
        return None
    by_token = _listed(tables)
    if by_token is None:
        return _listed_units(tables, provider.id)
    sounds = ("input_audio",) if _SPEAKS in model.lower() else ("input_audio", "output_audio")
    unpriced = tuple(kind for kind in sounds if not _all_have(tables, kind))
    return by_token.model_copy(update={"unpriced": unpriced})


def _all_have(tables: list[dict[str, object]], kind: str) -> bool:
    return all(table.get(_MEDIA[kind]) is not None for table in tables)


def _listed_units(tables: list[dict[str, object]], provider: str) -> Prices | None:
    """Convert tables that have no price for tokens; None: they have none for what is counted."""

    def dearest(key: str, scale: Decimal) -> Decimal | None:
        rates = [_rate_above(0, table.get(key)) for table in tables]
        found = [_EXACT.multiply(rate, scale) for rate in rates if rate is not None]
        return max(found, default=None)

    character = dearest(_CHARACTERS, _NANO_PER_TOKEN)
    hour = dearest(_HOURS, Decimal(NANO_PER_USD)) if provider == _BILLS_ALL_SECONDS else None
    if character is None and hour is None:
        return None
    nothing = dict.fromkeys(("input", "output", "cached_input", "cache_write", "reasoning"), 0)
    # Up to a price's twelfth decimal: an hour's has no exact sixtieth.
    minute = None if hour is None else (hour / 60).quantize(Decimal("0.001"), ROUND_CEILING)
    return Prices.model_validate(
        nothing | {"tokens": False, "minute": minute, "character": character}
    )


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
        **_media(rate),
    )


def _media(rate: Callable[[str], Decimal | None]) -> dict[str, Decimal]:
    """Take the rates of audio and images that a list has; a cached one costs as others of its kind
    where only those are listed."""
    listed = {name: rate(key) for name, key in _MEDIA.items()}
    for cached, fresh in _UNCACHED.items():
        listed[cached] = listed[fresh] if listed[cached] is None else listed[cached]
    return {
        name: _EXACT.multiply(found, _NANO_PER_TOKEN)
        for name, found in listed.items()
        if found is not None
    }


def _rate_above(length: int, price: object) -> Decimal | None:
    """Tell a price in USD for a million tokens, for an input of more tokens than `length`."""
    from genai_prices.types import TieredPrices

    if isinstance(price, TieredPrices):
        reached = [tier.price for tier in price.tiers if tier.start <= length]
        return reached[-1] if reached else price.base
    return price if isinstance(price, Decimal) else None
