"""What a provider says of its tokens, in the words of either of OpenAI's APIs.

A provider's figures are input like any other: a count that is missing, negative, no whole number
or beyond all reason is no measure, and the call is charged at its hold. Figures that are merely
higher than the hold are taken as they are: that is what the provider charges.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Final

from llmbudget.api.money import NANO_PER_USD, Nano, round_up
from llmbudget.decide.cost import MediaTokens, Usage
from llmbudget.gateway.protocols.fields import Fields
from llmbudget.gateway.protocols.sse import as_object, count, given


def tokens_of(
    usage: Fields, plausible: int, read: str = "input", written: str = "output"
) -> Usage | None:
    """Read a `usage` object; `read` and `written` are how it calls the two directions.

    Providers differ in what a total includes. Where the parts don't fit in it they come on top,
    and tokens of `total_tokens` that nobody explains are output: the dearer reading. So are all
    beside the prompt's where a count is left out: Gemini leaves out what is 0, and its thoughts
    stand in no other figure than the total.
    """
    of_input = as_object(usage.get(f"{read}_tokens_details", usage.get(f"{read}_token_details")))
    of_output = as_object(usage.get(f"{written}_tokens_details"))
    left_out = None if usage.get("total_tokens") is None else 0
    tokens_in = count(usage.get(f"{read}_tokens"), plausible)
    tokens_out = count(usage.get(f"{written}_tokens", left_out), plausible)
    total = count(given(usage, "total_tokens"), plausible)
    parts = _parts(of_input, of_output, plausible) if of_input or of_output else _NO_PARTS
    if tokens_in is None or tokens_out is None or total is None or parts is None:
        return None
    if not tokens_in + tokens_out:
        return None
    cached, cache_write, reasoning, media = parts
    tokens_in += cached + cache_write if cached + cache_write > tokens_in else 0
    if media is not None:
        tokens_in = max(tokens_in, sum(getattr(media, kind) for kind in _INPUT))
    tokens_out = max(tokens_out, total - tokens_in)
    tokens_out += reasoning if reasoning > tokens_out else 0
    if media is not None:
        tokens_out = max(tokens_out, media.output_audio + media.output_image)
    told = reported_cost(usage)
    return Usage(tokens_in, tokens_out, cached, cache_write, reasoning, media=media, reported=told)


def reported_cost(usage: Fields) -> Nano | None:
    """Read what a `usage` object says that the call costs, in nano-USD: 0 where it says nothing,
    None where it is no amount.

    OpenRouter tells dollars (`cost`), and beside them what the caller's own provider charges
    (`is_byok`); xAI tells ticks, of which a dollar has 10,000,000,000.
    """
    ticks, dollars = usage.get("cost_in_usd_ticks"), usage.get("cost")
    if ticks is None and dollars is None:
        return _NOTHING
    amounts = [(ticks, _TICK), (dollars, _DOLLAR)]
    if usage.get("is_byok") is True:
        details = as_object(usage.get("cost_details"))
        amounts.append((details.get("upstream_inference_cost"), _DOLLAR))
    total = Decimal(0)
    for amount, unit in amounts:
        if amount is None:
            continue
        # A bool is an int to Python; a comparison with NaN is false.
        if not isinstance(amount, int | float) or isinstance(amount, bool):
            return None
        if not amount >= 0:
            return None
        total += Decimal(repr(amount)) * unit
    return round_up(total) if total <= _MOST_REPORTED else None


def served(usage: Usage | None, asked: str | None, told: object) -> Usage | None:
    """Say which service tiers a usage may have been served in: the one that the answer tells,
    whatever was asked for, since a provider's settings may choose another; where it tells none, the
    usual one or the one that was asked for. None: what it tells is no tier."""
    if usage is None:
        return None
    if told is None or told == _UNTOLD:
        return usage if asked is None else replace(usage, services=("", asked))
    if not isinstance(told, str):
        return None
    if told in _USUAL:
        return usage if asked is None else replace(usage, services=("",))
    return replace(usage, services=(told,))


_NOTHING: Final = Nano(0)
_DOLLAR: Final = Decimal(NANO_PER_USD)
_TICK: Final = Decimal("0.1")
_MOST_REPORTED: Final = 1_000_000 * _DOLLAR
"""Above it an amount is beyond all reason."""
_USUAL: Final = ("default", "standard", "on_demand")
"""Names of the usual tier: OpenAI's, OpenRouter's, Groq's."""
_UNTOLD: Final = "auto"
"""What servers answer that repeat what they were asked for, or what they take an omission for."""
_INPUT = ("input_audio", "cached_audio", "input_image", "cached_image")
_Parts = tuple[int, int, int, MediaTokens | None]
_NO_PARTS: Final[_Parts] = (0, 0, 0, None)


def _parts(of_input: Fields, of_output: Fields, plausible: int) -> _Parts | None:
    """Read what was cached, written to the cache and spent on reasoning, and which tokens are no
    text; None: a figure is none. Of tokens from a cache most providers don't tell the kind: they
    count as text, which leaves the dearer ones uncached."""
    of_cached = as_object(of_input.get("cached_tokens_details"))
    told = (
        given(of_input, "cached_tokens"),
        given(of_input, "cache_write_tokens"),
        given(of_output, "reasoning_tokens"),
        *(given(part, "audio_tokens") for part in (of_input, of_cached, of_output)),
        *(given(part, "image_tokens") for part in (of_input, of_cached, of_output)),
    )
    known = [found for value in told if (found := count(value, plausible)) is not None]
    if len(known) < len(told):
        return None
    cached, cache_write, reasoning, *media = known
    if not any(media):
        return cached, cache_write, reasoning, None
    audio, cached_audio, output_audio, image, cached_image, output_image = media
    tokens = MediaTokens(
        input_audio=max(0, audio - cached_audio),
        cached_audio=cached_audio,
        output_audio=output_audio,
        input_image=max(0, image - cached_image),
        cached_image=cached_image,
        output_image=output_image,
        of_input=bool(audio or cached_audio or image or cached_image),
        of_output=bool(output_audio or output_image),
    )
    return cached, cache_write, reasoning, tokens
