"""What a provider charges for a model, as its resource says."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from llmbudget.api.model import (
    Model,
    Price,
    keyed_by,
    rules,
)


class OtherRates(Model):
    """Prices in USD for 1,000 tokens that are not plain text, as decimal strings."""

    cached_input_per_1k: Price | None = Field(default=None, alias="cachedInputPer1K")
    """Input tokens read from the provider's cache; default: as input."""
    cache_write_per_1k: Price | None = Field(default=None, alias="cacheWritePer1K")
    """Input tokens written to the provider's cache; default: as input, or 1.25 times that in
    Anthropic's protocol."""
    cache_write_hour_per_1k: Price | None = Field(default=None, alias="cacheWriteHourPer1K")
    """Input tokens written to a cache that lasts for an hour; default: as input, or twice that in
    Anthropic's protocol."""
    reasoning_per_1k: Price | None = Field(default=None, alias="reasoningPer1K")
    """Reasoning tokens; default: as output."""
    input_audio_per_1k: Price | None = Field(default=None, alias="inputAudioPer1K")
    """Input tokens of audio; default: as input."""
    cached_input_audio_per_1k: Price | None = Field(default=None, alias="cachedInputAudioPer1K")
    """Input tokens of audio read from the provider's cache; default: as other input of audio."""
    output_audio_per_1k: Price | None = Field(default=None, alias="outputAudioPer1K")
    """Output tokens of audio; default: as output."""
    input_image_per_1k: Price | None = Field(default=None, alias="inputImagePer1K")
    """Input tokens of images; default: as input."""
    cached_input_image_per_1k: Price | None = Field(default=None, alias="cachedInputImagePer1K")
    """Input tokens of images read from the provider's cache; default: as other input of images."""
    output_image_per_1k: Price | None = Field(default=None, alias="outputImagePer1K")
    """Output tokens of images; default: as output."""


class CostTier(OtherRates):
    """Prices of all tokens of a call with a long input."""

    input_per_1k: Price = Field(alias="inputPer1K")
    """Input tokens."""
    output_per_1k: Price = Field(alias="outputPer1K")
    """Output tokens."""
    above: Annotated[int, Field(ge=1, le=100_000_000)]
    """Input tokens, those of the cache among them, above which a call is charged these prices
    instead."""


class ServiceTier(StrEnum):
    """A way of being served that a caller may ask for (`service_tier`), with prices of its own."""

    FLEX = "flex"
    PRIORITY = "priority"


class ServiceTierCost(OtherRates):
    """Prices of all tokens of a call that is served in a tier."""

    name: ServiceTier
    """The tier, as callers ask for it and answers tell it."""
    input_per_1k: Price = Field(alias="inputPer1K")
    """Input tokens."""
    output_per_1k: Price = Field(alias="outputPer1K")
    """Output tokens."""
    long_context: Annotated[
        list[CostTier], Field(max_length=8, json_schema_extra=keyed_by("above"))
    ] = []
    """Other prices for long inputs in this tier. Omitted: where the usual prices have some, each
    token costs the dearer of this tier's price and that one."""


class ImageCost(Model):
    """Price of one image that the model makes."""

    price: Price
    """USD for one image, as a decimal string."""
    size: Annotated[str, Field(pattern=r"^[a-z0-9]+$", max_length=32)] | None = None
    """Only of this size, such as 1024x1024; default: of any."""
    quality: Annotated[str, Field(pattern=r"^[a-z]+$", max_length=32)] | None = None
    """Only of this quality, such as high; default: of any."""


class Cost(OtherRates):
    """What calls cost in USD, as decimal strings: by tokens, or by what else the provider counts.
    Where both are given, both are charged."""

    model_config = {
        "json_schema_extra": rules(
            (
                "has(self.inputPer1K) == has(self.outputPer1K)",
                "inputPer1K and outputPer1K belong together: set both",
            ),
            (
                "has(self.inputPer1K) || has(self.perMinute) || has(self.per1KCharacters)"
                " || has(self.perImage)",
                "a price is needed: set inputPer1K and outputPer1K, perMinute, per1KCharacters"
                " or perImage",
            ),
            (
                "!has(self.serviceTiers) || size(self.serviceTiers) == 0 || has(self.inputPer1K)",
                "serviceTiers belong to prices of tokens: set inputPer1K and outputPer1K",
            ),
        )
    }

    input_per_1k: Price | None = Field(default=None, alias="inputPer1K")
    """1,000 input tokens."""
    output_per_1k: Price | None = Field(default=None, alias="outputPer1K")
    """1,000 output tokens."""
    per_minute: Price | None = None
    """A minute of audio that is transcribed."""
    per_1k_characters: Price | None = Field(default=None, alias="per1KCharacters")
    """1,000 characters that are spoken."""
    per_image: Annotated[list[ImageCost], Field(min_length=1, max_length=64)] | None = None
    """Images that are made. A call is charged the dearest that fits the size and the quality it
    asks for; what it does not ask for may be any."""
    service_tiers: Annotated[
        list[ServiceTierCost], Field(max_length=2, json_schema_extra=keyed_by("name"))
    ] = []
    """Prices of the tiers that callers may ask for, by `service_tier` of OpenAI's chat completions
    and responses; a tier that is not named is refused. A call is held at the dearer of the tier's
    prices and the others, and charged at those of the tier that the answer tells."""
    long_context: Annotated[
        list[CostTier], Field(max_length=8, json_schema_extra=keyed_by("above"))
    ] = []
    """Other prices for long inputs. A call is held at the dearest price of all, and charged at
    those of its length."""
