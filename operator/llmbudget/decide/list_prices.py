"""List prices, from the genai-prices package, which only the operator reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Final

from llmbudget.api.money import NANO_PER_USD
from llmbudget.contract.config import Prices, Rates
from llmbudget.decide.rates import EXACT, by_length

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

_NANO_PER_TOKEN: Final = Decimal(1000)
"""USD for a million tokens, times this, are nano-USD for one token."""
_INPUT: Final = "input_mtok"
_OUTPUT: Final = "output_mtok"
_CACHE_READ: Final = "cache_read_mtok"
_CACHE_WRITE: Final = "cache_write_mtok"
_CACHE_WRITE_HOUR: Final = "cache_write_1h_mtok"
_REASONING: Final = "output_reasoning_mtok"
_MEDIA: Final = {
    **{"input_audio": "input_audio_mtok", "cached_audio": "cache_audio_read_mtok"},
    **{"output_audio": "output_audio_mtok", "output_image": "output_image_mtok"},
    **{"input_image": "input_image_mtok", "cached_image": "cache_image_read_mtok"},
}
_UNCACHED: Final = {"cached_audio": "input_audio", "cached_image": "input_image"}
_CHARACTERS: Final = "input_mchars"
_HOURS: Final = "input_audio_hours"
_UNBOUNDED: Final = frozenset(
    {"requests_kcount", "output_citation_mtok", "output_video_mtok", "input_text_messages_kcount"}
)
"""Charges that every call incurs and that no price here can say."""
_BILLS_ALL_SECONDS: Final = "openai"
"""Others charge for some seconds at least, which the list does not tell."""
_EMBEDS: Final = "embed"
_DRAWS: Final = re.compile("image|banana")
_DRAWS_ALONE: Final = re.compile(r"(^|/)gpt-image-\d")
"""Models that write nothing but images, so that the price of their output is an image's."""
_SPEAKS: Final = "tts"
"""Models named so write nothing but sound."""
_SEARCHING: Final = ("search", "research", "sonar", ":online")
"""Models named so search the web by themselves, and each search is charged."""


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
        found = [EXACT.multiply(rate, scale) for rate in rates if rate is not None]
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
        return EXACT.multiply(otherwise if found is None else found, _NANO_PER_TOKEN)

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
        name: EXACT.multiply(found, _NANO_PER_TOKEN)
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
