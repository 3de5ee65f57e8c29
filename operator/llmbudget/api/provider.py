"""LLMProvider: one upstream API, its key's source, its models and their prices."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from llmbudget.api.conditions import Condition
from llmbudget.api.costs import Cost
from llmbudget.api.credentials import CaBundle, Credentials
from llmbudget.api.model import (
    Duration,
    Model,
    ModelName,
    Price,
    Url,
    keyed_by,
    rules,
)


class Protocol(StrEnum):
    """Wire protocol of a provider. Routing never crosses protocols."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"


class LimitField(StrEnum):
    """Field of a chat completion that limits its output."""

    MAX_TOKENS = "max_tokens"
    MAX_COMPLETION_TOKENS = "max_completion_tokens"


DEFAULT_CONTEXT: Final = 128_000
"""Tokens; assumed for choosing among models where nothing is said."""


class ProviderModel(Model):
    """A model that the provider offers."""

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.defaultMaxOutput) || self.defaultMaxOutput"
                " <= (has(self.maxOutput) ? self.maxOutput : 16384)",
                "defaultMaxOutput must not be above maxOutput (16384 if omitted): lower it or raise"
                " maxOutput",
            ),
            (
                "!has(self.maxOutput) || !has(self.maxContext)"
                " || self.maxOutput <= self.maxContext",
                "maxOutput must not be above maxContext: lower it",
            ),
        )
    }

    name: ModelName
    """Name by which callers ask for it."""
    upstream_name: ModelName | None = None
    """Name by which the provider knows it; default: `name`."""
    cost: Cost | None = None
    """Prices; omitted: those of the genai-prices package; unknown there, or at Azure, where a
    deployment's name says nothing of its price: the model is refused."""
    max_context: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Context window in tokens: an upper bound of any call's input, so never less than what the
    provider accepts. Omitted: only a request's size bounds it, and 128000 is assumed for choosing
    among models."""
    max_output: Annotated[int, Field(ge=1, le=10_000_000)] = 16_384
    """Most output tokens that the provider produces in one call."""
    default_max_output: Annotated[int, Field(ge=1, le=10_000_000)] = 4096
    """Output limit in tokens that is set when the request sets none."""
    image_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Most input tokens that one image costs; default: what the provider documents for the model
    where that is known, else the whole context."""
    media_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Most output tokens that one image or one speech costs which the model makes, since no request
    can limit them; default: what the provider documents for the model where that is known, else
    such calls are refused where they are charged by tokens."""
    audio_seconds: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Most seconds of audio that the provider takes in one call; default: what the provider
    documents for the model where that is known, else sound is refused where it is charged by
    time."""
    latency_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 1000
    """Expected latency in milliseconds; `auto:fastest` chooses by it."""


class Hosted(Model):
    """What the provider may do by itself in a call, beside answering. Each is off until it is named
    here; calls that ask for it are refused before."""

    web_search_per_1k: Price | None = Field(default=None, alias="webSearchPer1K")
    """USD for 1,000 web searches, as a decimal string. Callers may then use the tool `web_search`
    of OpenAI's responses, with `max_tool_calls`, and `web_search_20250305` of Anthropic's messages,
    with `max_uses`. What is searched for is told to the provider's search engine."""
    files: bool = False
    """Whether callers may send files such as PDFs, which count as a whole context: only where the
    provider charges nothing for reading them beside tokens."""
    stored_responses: bool = False
    """Whether callers may have OpenAI's responses stored by the provider (`store`) and go on from
    them (`previous_response_id`). Whoever knows a response's id can go on from it, whichever
    consumer it belongs to."""


class Timeouts(Model):
    """Deadlines of one call to the provider."""

    connect: Duration = "5s"
    """To connect, TLS included."""
    idle: Duration = "60s"
    """Between two reads."""
    total: Duration = "10m"
    """For the whole call."""


class ProviderSpec(Model):
    """One upstream API: where it is, its key, its models and their prices."""

    model_config = {
        "json_schema_extra": rules(
            (
                "self.endpoint.startsWith('https://')"
                " || (has(self.allowPrivate) && self.allowPrivate)",
                "endpoint must be https: a key never travels in clear, unless allowPrivate is true",
            ),
            (
                "!has(self.apiVersion) || !has(self.protocol) || self.protocol == 'OpenAI'",
                "apiVersion belongs to Azure OpenAI: remove it, or set protocol to OpenAI",
            ),
            (
                "!has(self.apiVersion) || !self.endpoint.matches('[^/]/openai(/.*)?$')",
                "with apiVersion the endpoint is the Azure resource's own URL, such as"
                " https://NAME.openai.azure.com: remove /openai and what follows",
            ),
        )
    }

    protocol: Protocol = Protocol.OPENAI
    """Wire protocol: OpenAI or Anthropic."""
    endpoint: Url
    """Base URL, such as https://openrouter.ai/api/v1,
    https://generativelanguage.googleapis.com/v1beta/openai or
    https://NAME.openai.azure.com/openai/v1."""
    api_version: (
        Annotated[
            str,
            Field(
                pattern=r"^([0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?|preview|latest)$", max_length=32
            ),
        ]
        | None
    ) = None
    """Version of Azure OpenAI's older API, such as 2024-10-21. The endpoint is then the resource's
    own URL, and a model's upstreamName that of its deployment: calls go to
    /openai/deployments/UPSTREAM_NAME. Omitted: the paths are OpenAI's own, as in Azure's newer
    API below /openai/v1."""
    allow_private: bool = False
    """Whether the endpoint may be a private or cluster-internal address (LocalAI). It must also be
    on the installation's allow list."""
    ca_bundle: CaBundle | None = None
    """Certificate authorities for the endpoint; default: the system's."""
    credentials: Credentials
    """Where the key comes from."""
    models: Annotated[
        list[ProviderModel],
        Field(min_length=1, max_length=64, json_schema_extra=keyed_by("name")),
    ]
    """Models that may be called."""
    hosted: Hosted = Hosted()
    """What the provider may do by itself, such as searching the web."""
    timeouts: Timeouts = Timeouts()
    """Deadlines."""
    limit_field: LimitField | None = None
    """Field in which the output limit of chat completions is sent: max_tokens or
    max_completion_tokens; default: max_tokens, which every compatible server heeds, but at OpenAI
    and Azure the one that the caller used. Set max_completion_tokens for a proxy before OpenAI's
    reasoning models, and only there: nothing bounds a call to a server that passes over it."""
    bills_errors: bool | None = None
    """Whether the provider charges for calls that it answers with an error; default: as it
    documents. Azure charges for a prompt that it filters or finds too long, xAI for one that
    violates its guidelines; others charge for none."""


class ProviderStatus(Model):
    """What the operator found."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""
    models: Annotated[int, Field(ge=0)] = 0
    """Number of models that have a price."""
    conditions: Annotated[
        list[Condition],
        Field(max_length=16, json_schema_extra=keyed_by("type")),
    ] = []
    """Ready, Reconciling, Stalled."""
