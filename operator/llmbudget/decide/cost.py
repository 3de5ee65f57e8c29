"""What a call used, and what that costs: exact, in nano-USD, rounded up once."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from llmbudget.api.money import Nano, round_up
from llmbudget.api.values import value
from llmbudget.contract.config import COUNTERPARTS, Prices, Rates
from llmbudget.decide.rates import EXACT

_OF_INPUT: Final = frozenset({"input_audio", "cached_audio", "input_image", "cached_image"})
_KINDS: Final = (*sorted(_OF_INPUT), "output_audio", "output_image")
_MILLISECONDS: Final = 60_000
"""Of a minute."""


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
    fma = EXACT.fma
    total = EXACT.multiply(usage.tokens_in - usage.cached - usage.cache_write, rates.input)
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
        for kind in _KINDS:
            total = fma(getattr(usage.media, kind), _beyond(rates, kind), total)
        kinds = usage.media.untold(kinds)
    if kinds:
        total = EXACT.add(total, _untold(usage, rates, kinds))
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
        total = EXACT.fma(counts[text], each, total)
    return total


def _beyond(rates: Rates, kind: str) -> Decimal:
    """Tell what a token of a kind costs beyond one of text."""
    return EXACT.subtract(rates.effective(kind), rates.effective(COUNTERPARTS[kind]))


def with_units(tokens: Decimal, units: Units, prices: Prices) -> Nano:
    """Add to what a call's tokens cost what else is counted, rounded up once.

    Raises:
        NoImagePrice: no price fits the images.
    """
    total = EXACT.fma(units.characters, prices.character or Decimal(0), tokens)
    total = EXACT.fma(units.searches or 0, prices.search or Decimal(0), total)
    if units.images and prices.images:
        total = EXACT.fma(units.images, image_price(units, prices), total)
    # A minute's price has no exact part of a second: the sum is rounded up before it is divided,
    # which gives the same as rounding after.
    minutes = EXACT.multiply(units.milliseconds or 0, prices.minute or Decimal(0))
    return Nano(-(-round_up(EXACT.fma(total, _MILLISECONDS, minutes)) // _MILLISECONDS))


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
