"""What a provider says of its tokens, in the words of either of OpenAI's APIs.

A provider's figures are input like any other: a count that is missing, negative, no whole number
or beyond all reason is no measure, and the call is charged at its hold. Figures that are merely
higher than the hold are taken as they are: that is what the provider charges.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from llmbudget.decide.prices import MediaTokens, Usage
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
    counts = [
        count(usage.get(f"{read}_tokens"), plausible),
        count(usage.get(f"{written}_tokens", left_out), plausible),
        count(given(usage, "total_tokens"), plausible),
        count(given(of_input, "cached_tokens"), plausible),
        count(given(of_input, "cache_write_tokens"), plausible),
        count(given(of_output, "reasoning_tokens"), plausible),
    ]
    media = _media(of_input, of_output, plausible)
    known = [found for found in counts if found is not None]
    if media is None or len(known) < len(counts) or not known[0] + known[1]:
        return None
    tokens_in, tokens_out, total, cached, cache_write, reasoning = known
    tokens_in += cached + cache_write if cached + cache_write > tokens_in else 0
    tokens_in = max(tokens_in, sum(getattr(media, kind) for kind in _INPUT))
    tokens_out = max(tokens_out, total - tokens_in)
    tokens_out += reasoning if reasoning > tokens_out else 0
    tokens_out = max(tokens_out, media.output_audio + media.output_image)
    told = None if media == _TEXT else media
    return Usage(tokens_in, tokens_out, cached, cache_write, reasoning, media=told)


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


_USUAL: Final = ("default", "standard", "on_demand")
"""Names of the usual tier: OpenAI's, OpenRouter's, Groq's."""
_UNTOLD: Final = "auto"
"""What servers answer that repeat what they were asked for, or what they take an omission for."""
_TEXT = MediaTokens()
_INPUT = ("input_audio", "cached_audio", "input_image", "cached_image")


def _media(of_input: Fields, of_output: Fields, plausible: int) -> MediaTokens | None:
    """Read which tokens are no text; None: a figure is none. Of tokens from a cache most providers
    don't tell the kind: they count as text, which leaves the dearer ones uncached."""
    of_cached = as_object(of_input.get("cached_tokens_details"))
    counts = [
        count(given(part, name), plausible)
        for part in (of_input, of_cached, of_output)
        for name in ("audio_tokens", "image_tokens")
    ]
    known = [found for found in counts if found is not None]
    if len(known) < len(counts):
        return None
    if not any(known):
        return _TEXT
    audio, image, cached_audio, cached_image, output_audio, output_image = known
    return MediaTokens(
        input_audio=max(0, audio - cached_audio),
        cached_audio=cached_audio,
        output_audio=output_audio,
        input_image=max(0, image - cached_image),
        cached_image=cached_image,
        output_image=output_image,
    )
