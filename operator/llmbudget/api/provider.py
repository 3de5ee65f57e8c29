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
    LocalRef,
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


class CaBundle(Model):
    """Certificate authorities to trust for the endpoint instead of the system's."""

    config_map_key_ref: ConfigMapKeyRef
    """PEM bundle in a ConfigMap of the same namespace."""


VaultTtl = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}(s|m|h)$", max_length=8)]
VaultPath = Annotated[
    str,
    Field(
        pattern=r"^[-A-Za-z0-9_@=+:~][-A-Za-z0-9_@=+:~.]*(/[-A-Za-z0-9_@=+:~][-A-Za-z0-9_@=+:~.]*)*$",
        min_length=1,
        max_length=512,
    ),
]
"""Segments that need no escape in a URL, none of which climbs."""


class VaultSource(Model):
    """A key in HashiCorp Vault or OpenBao, read by the gateway and never at rest in the cluster.

    The secret has to name, in its entry `allowed_host`, the host that the key may be sent to.
    """

    model_config = {
        "json_schema_extra": rules(
            (
                "self.address.startsWith('https://')"
                " || (has(self.allowPrivate) && self.allowPrivate)",
                "the address of Vault must be https: a key never travels in clear, unless"
                " vault.allowPrivate is true",
            ),
            (
                "has(self.role) != (has(self.authMethod) && self.authMethod == 'AppRole')",
                "role is needed with authMethod Kubernetes, and is no part of AppRole: there"
                " the role_id in appRoleSecretRef says it",
            ),
            (
                "has(self.appRoleSecretRef) == (has(self.authMethod)"
                " && self.authMethod == 'AppRole')",
                "appRoleSecretRef is needed with authMethod AppRole, and is no part of Kubernetes",
            ),
        )
    }

    address: Url
    """URL of the server, such as https://vault.vault.svc:8200. It is also the audience of the
    ServiceAccount token of the Kubernetes method, which thus is of no use at any other server."""
    allow_private: bool = False
    """Whether the server may be at a private or cluster-internal address. It must also be on the
    installation's allow list."""
    ca_bundle: CaBundle | None = None
    """Certificate authorities for the server; default: the public ones."""
    namespace: VaultPath | None = None
    """Namespace of the server (Vault Enterprise, OpenBao); default: its root."""
    auth_method: VaultAuthMethod = VaultAuthMethod.KUBERNETES
    """Kubernetes (the gateway's ServiceAccount) or AppRole."""
    auth_path: VaultPath | None = None
    """Mount path of the auth method; default: `kubernetes` or `approle`."""
    role: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Role to log in as, by the Kubernetes method."""
    app_role_secret_ref: LocalRef | None = None
    """Secret of the same namespace with the entries `role_id` and `secret_id`; it consents by the
    label llmbudget.io/provider-key: "true" and, with the server's host, the annotation
    llmbudget.io/allowed-host."""
    mount: VaultPath = "secret"
    """Mount path of the KV engine."""
    kv_version: Annotated[int, Field(ge=1, le=2)] = 2
    """Version of the KV engine."""
    path: VaultPath
    """Path of the secret below the mount, without `data/`."""
    key: DataKey
    """Entry of the secret."""
    ttl: VaultTtl = "5m"
    """How long a key that was read is used. It is read again well before, so that this is how long
    calls go on while the server is away; shorter where the secret's own lease is."""


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
    """HashiCorp Vault, or OpenBao."""
    header: KeyHeader = KeyHeader.AUTHORIZATION
    """Header that carries the key; Authorization sends `Bearer KEY`."""


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
    media_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Most output tokens that one image or one speech costs which the model makes, since no request
    can limit them; default: what the provider documents for the model where that is known, else
    such calls are refused where they are charged by tokens."""
    audio_seconds: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Most seconds of audio that the provider takes in one call; default: what the provider
    documents for the model where that is known, else only files that tell their length by
    themselves are taken where they are charged by time."""
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
    """What a platform team says about one upstream API."""

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
