"""LLMProvider: one upstream API, its key's source, its models and their prices."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from llmbudget.api.conditions import Condition
from llmbudget.api.model import (
    ConfigMapKeyRef,
    DataKey,
    Duration,
    Model,
    ModelName,
    Price,
    SecretKeyRef,
    Url,
    keyed_by,
    rules,
)


class Protocol(StrEnum):
    """Wire protocol of a provider. Routing never crosses protocols."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"


class KeyHeader(StrEnum):
    """Header that carries the key upstream; `Authorization` as `Bearer KEY`."""

    AUTHORIZATION = "Authorization"
    API_KEY = "api-key"
    X_API_KEY = "x-api-key"


class VaultAuthMethod(StrEnum):
    """How the gateway logs in to Vault."""

    KUBERNETES = "Kubernetes"
    APP_ROLE = "AppRole"


class VaultSource(Model):
    """A key in HashiCorp Vault, read by the gateway and never at rest in the cluster."""

    address: Url
    """URL of the Vault server."""
    auth_method: VaultAuthMethod = VaultAuthMethod.KUBERNETES
    """Kubernetes (the gateway's ServiceAccount) or AppRole."""
    auth_path: Annotated[str, Field(max_length=128)] | None = None
    """Mount path of the auth method; default `kubernetes` or `approle`."""
    role: Annotated[str, Field(min_length=1, max_length=128)]
    """Role to log in as."""
    mount: Annotated[str, Field(min_length=1, max_length=128)] = "secret"
    """Mount path of the KV engine."""
    path: Annotated[str, Field(min_length=1, max_length=512)]
    """Path of the secret below the mount."""
    key: DataKey
    """Key in the secret."""


class CaBundle(Model):
    """Certificate authorities to trust for the endpoint instead of the system's."""

    config_map_key_ref: ConfigMapKeyRef
    """PEM bundle in a ConfigMap of the same namespace."""


class Credentials(Model):
    """Where the provider's key comes from: exactly one source."""

    model_config = {
        "json_schema_extra": rules(
            (
                "has(self.secretKeyRef) != has(self.vault)",
                "exactly one credential source is needed: set secretKeyRef or vault, not both",
            ),
        )
    }

    secret_key_ref: SecretKeyRef | None = None
    """Secret of the same namespace; it consents by the label llmbudget.io/provider-key: "true" and
    the annotation llmbudget.io/allowed-host."""
    vault: VaultSource | None = None
    """HashiCorp Vault."""
    header: KeyHeader = KeyHeader.AUTHORIZATION
    """Header that carries the key; Authorization sends `Bearer KEY`."""


class CostRates(Model):
    """Prices in USD for 1,000 tokens, as decimal strings."""

    input_per_1k: Price = Field(alias="inputPer1K")
    """Input tokens."""
    output_per_1k: Price = Field(alias="outputPer1K")
    """Output tokens."""
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


class CostTier(CostRates):
    """Prices of all tokens of a call with a long input."""

    above: Annotated[int, Field(ge=1, le=100_000_000)]
    """Input tokens, those of the cache among them, above which a call is charged these prices
    instead."""


class Cost(CostRates):
    """Prices in USD for 1,000 tokens, as decimal strings."""

    long_context: Annotated[
        list[CostTier], Field(max_length=8, json_schema_extra=keyed_by("above"))
    ] = []
    """Other prices for long inputs. A call is held at the dearest price of all, and charged at
    those of its length."""


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
    """Prices; omitted: those of the genai-prices package; unknown there: the model is refused."""
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
    latency_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 1000
    """Expected latency in milliseconds; `auto:fastest` chooses by it."""


class Timeouts(Model):
    """Deadlines of one call to the provider."""

    connect: Duration = "5s"
    """To connect, TLS included."""
    idle: Duration = "60s"
    """Between two reads."""
    total: Duration = "10m"
    """For the whole call."""


class ProviderSpec(Model):
    """What a platform team says about one upstream API."""

    model_config = {
        "json_schema_extra": rules(
            (
                "self.endpoint.startsWith('https://')"
                " || (has(self.allowPrivate) && self.allowPrivate)",
                "endpoint must be https: a key never travels in clear, unless allowPrivate is true",
            ),
            (
                "!has(self.credentials.vault)"
                " || self.credentials.vault.address.startsWith('https://')"
                " || (has(self.allowPrivate) && self.allowPrivate)",
                "the address of Vault must be https: a key never travels in clear, unless"
                " allowPrivate is true",
            ),
        )
    }

    protocol: Protocol = Protocol.OPENAI
    """Wire protocol: OpenAI or Anthropic."""
    endpoint: Url
    """Base URL, such as https://openrouter.ai/api/v1."""
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
    timeouts: Timeouts = Timeouts()
    """Deadlines."""
    bills_errors: bool = False
    """Whether the provider charges for calls that it answers with an error."""


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
