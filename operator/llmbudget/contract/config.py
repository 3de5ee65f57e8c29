"""The gateway's configuration: one JSON document in the ConfigMap that the operator renders.

Everything is resolved: effective values, prices, ladders, the path of accounts. The gateway knows
no custom resource. Key `CONFIG_KEY` of the ConfigMap holds the document, `PROVIDERS_KEY` the same
providers in the 371OS guide's form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from llmbudget.api.budget import Action, IdentityMode, OnExceeded, Strategy
from llmbudget.api.credentials import KeyHeader, VaultAuthMethod
from llmbudget.api.provider import LimitField, Protocol

CONFIG_KEY: Final = "gateway.json"
PROVIDERS_KEY: Final = "providers.json"
KEYS_DIRECTORY: Final = "/var/run/llmbudget/keys"
"""Mount of the providers' keys in the gateway's pod: one file a provider, named after it."""
CA_DIRECTORY: Final = "/var/run/llmbudget/ca"
"""Mount of the providers' CA bundles: one file a provider, `NAME.pem`."""
VAULT_DIRECTORY: Final = "/var/run/llmbudget/vault"
"""Mount of what the gateway logs in to Vault with: one folder a provider, with `token` (Kubernetes)
or `role_id` and `secret_id` (AppRole), and VAULT_CA_FILE where there is a CA bundle."""
VAULT_CA_FILE: Final = "ca.pem"
LEDGER_DIRECTORY: Final = "/var/lib/llmbudget"
"""Mount of the SQLite ledger's volume."""
POSTGRES_FILE: Final = "/var/run/llmbudget/database/uri"
"""Connection string of the shared ledger; the authority of its server is in ca.crt beside it."""
REGION_POSTGRES_FILE: Final = "/var/run/llmbudget/region-database/uri"
"""Connection string of the database of the gateway's own region, where it works from slices."""
TLS_DIRECTORY: Final = "/var/run/llmbudget/tls"
"""Mount of the serving certificate: tls.crt and tls.key."""
CA_BUNDLE_KEY: Final = "ca.crt"
"""Entry of the ConfigMap, beside the gateway, by which clients check its certificate."""
POSTHOG_KEY_FILE: Final = "/var/run/llmbudget/posthog/key"
"""PostHog's project API key."""
DATADOG_KEY_FILE: Final = "/var/run/llmbudget/datadog/key"
"""Datadog's API key."""
TOKEN_DIRECTORY: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105
"""Mount of the gateway's own token, CA and namespace."""
GATEWAY_PORT: Final = 8080


class Wire(BaseModel):
    """Base: camelCase JSON, unknown fields ignored, so that versions can differ by one."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True
    )


class Unit(StrEnum):
    """What providers charge by."""

    TOKEN = "token"  # noqa: S105
    SECOND = "second"
    """Of audio that is read."""
    CHARACTER = "character"
    """Of text that is spoken."""
    IMAGE = "image"
    """That is made."""


TOKENS: Final = frozenset({Unit.TOKEN})

COUNTERPARTS: Final[Mapping[str, str]] = {
    "cache_write_hour": "cache_write",
    **{"input_audio": "input", "cached_audio": "cached_input", "output_audio": "output"},
    **{"input_image": "input", "cached_image": "cached_input", "output_image": "output"},
}
"""Rates that may be left out, and the one that then stands in."""


class Rates(Wire):
    """Exact prices in nano-USD for one token. Those of audio and images are None where such tokens
    cost what text costs."""

    input: Decimal
    output: Decimal
    cached_input: Decimal
    cache_write: Decimal
    reasoning: Decimal
    cache_write_hour: Decimal | None = None
    """Written to a cache that lasts for an hour; None: as `cache_write`."""
    input_audio: Decimal | None = None
    cached_audio: Decimal | None = None
    output_audio: Decimal | None = None
    input_image: Decimal | None = None
    cached_image: Decimal | None = None
    output_image: Decimal | None = None

    def effective(self, name: str) -> Decimal:
        """Tell a rate, or that of its counterpart where it is left out."""
        found: Decimal | None = getattr(self, name)
        return self.effective(COUNTERPARTS[name]) if found is None else found

    @property
    def hour(self) -> Decimal:
        """The rate of `cache_write_hour`, effective."""
        return self.cache_write if self.cache_write_hour is None else self.cache_write_hour


class Tier(Rates):
    """Rates of all tokens of a call whose input is long enough."""

    above: int
    """The tier applies to an input of more tokens than this."""


class RatesByLength(Rates):
    """Rates of which a call's input chooses by its length: its own are the dearest of them, by
    which a call is held."""

    tiers: tuple[Tier, ...] = ()
    """What a call is charged by the length of its input: shortest first, the first for any length.
    Empty: the same for all."""

    def charged(self, tokens_in: int) -> Rates:
        """Find the rates that a call with this input is charged."""
        applying = [tier for tier in self.tiers if tokens_in > tier.above]
        return applying[-1] if applying else (self.tiers or (self,))[0]


class ImagePrice(Wire):
    """What one image costs that a model makes, in nano-USD."""

    price: Decimal
    size: str | None = None
    """Such as 1024x1024; None: any."""
    quality: str | None = None
    """Such as high; None: any."""


class Prices(RatesByLength):
    """What a model costs."""

    tokens: bool = True
    """Whether tokens have a price: otherwise all rates are 0, and mean nothing."""
    minute: Decimal | None = None
    """Nano-USD for a minute of audio that is read; None: not charged by time."""
    character: Decimal | None = None
    """Nano-USD for a character that is spoken; None: not charged by characters."""
    images: tuple[ImagePrice, ...] = ()
    """Prices of images made; empty: not charged by images."""
    services: Mapping[str, RatesByLength] | None = None
    """Rates of the service tiers that may be asked for, and of the places where a provider may run
    a model, by name; None: there are none."""
    unpriced: tuple[str, ...] = ()
    """Rates that nobody knows: a call that may have such tokens is refused."""
    search: Decimal | None = None
    """Nano-USD for a web search of the provider's; None: it may not search."""

    @property
    def free(self) -> bool:
        """Whether everything costs nothing but what a caller asks for beside: a search."""
        rates = (self.effective(name) for name in Rates.model_fields)
        units = (self.minute, self.character)
        images = (image.price for image in self.images)
        tiers = (tier.effective(name) for tier in self.tiered for name in Rates.model_fields)
        return not any((*rates, *units, *images, *tiers))

    @property
    def tiered(self) -> Iterable[Rates]:
        """Rates of all service tiers."""
        return (self.services or {}).values()

    def has(self, units: frozenset[Unit]) -> bool:
        """Tell whether one of these units has a price."""
        return (
            (self.tokens and Unit.TOKEN in units)
            or (self.minute is not None and Unit.SECOND in units)
            or (self.character is not None and Unit.CHARACTER in units)
            or (bool(self.images) and Unit.IMAGE in units)
        )


class ModelConfig(Wire):
    """A model of a provider. `prices` is None where none is known: calls to it are refused."""

    name: str
    upstream_name: str
    prices: Prices | None = None
    max_context: int
    """For choosing among models; an assumption where nobody has said it."""
    max_output: int
    default_max_output: int
    latency_ms: int
    context_bound: int | None = None
    """What is said to be the model's context: no input is longer; None: nobody has said it."""
    image_tokens: int | None = None
    """Most tokens of one image; None: as many as the context holds."""
    media_output_tokens: int | None = None
    """Most tokens of one image or one speech that it makes; None: nobody has said it."""
    audio_seconds: int | None = None
    """Most seconds of audio that it reads in one call; None: nobody has said it."""
    stored: Literal[True] | None = None
    """Whether its answers may be stored by the provider; None: no."""
    files: Literal[True] | None = None
    """Whether it may be sent files, whose reading costs tokens alone; None: no."""


class VaultConfig(Wire):
    """Where in Vault a key is, and how the gateway gets in."""

    address: str
    allow_private: bool
    ca_bundle: bool
    namespace: str | None = None
    auth_method: VaultAuthMethod
    auth_path: str
    role: str | None = None
    mount: str
    kv_version: int
    path: str
    key: str
    ttl_ms: int


class ProviderConfig(Wire):
    """A provider. Its key is the file KEYS_DIRECTORY/name, the variable `key_env`, or in Vault."""

    name: str
    protocol: Protocol
    endpoint: str
    api_version: str | None = None
    """Of Azure OpenAI's older paths; None: the paths are OpenAI's own."""
    allow_private: bool
    key_header: KeyHeader
    key_env: str | None = None
    vault: VaultConfig | None = None
    ca_file: str | None = None
    models: tuple[ModelConfig, ...]
    connect_timeout_ms: int
    idle_timeout_ms: int
    total_timeout_ms: int
    limit_field: LimitField | None = None
    """Of chat completions; None: as the host wants it."""
    bills_errors: bool
    """Whether it charges for errors."""
    errors_by_host: bool = False
    """Whether it also does as is documented of its host: nobody says what it charges for."""


class Threshold(Wire):
    """At this percentage of the cap, this action."""

    percentage: Annotated[int, Field(ge=1, le=100)]
    action: Action


class Limits(Wire):
    """Rate limits of one ServiceAccount; None: unlimited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


class EnvelopeLimits(Wire):
    """What one ServiceAccount may set aside at once in envelopes for its tasks."""

    maximum_nano: int
    """Of all that are open, together."""
    count: int


class ConsumerConfig(Wire):
    """Who may spend from an account; `service_accounts` None: all of the namespace."""

    namespace: str
    service_accounts: tuple[str, ...] | None = None
    agent: str | None = None
    limits: Limits = Limits()
    envelopes: EnvelopeLimits | None = None
    """None: it opens none."""


class BorrowingConfig(Wire):
    """What an account borrows of and lends to its siblings, in nano-USD."""

    limit_nano: int
    lending_limit_nano: int | None = None
    """None: all that is idle."""


class TopUpConfig(Wire):
    """Money beyond the cap, for the month in which the ledger takes it over."""

    id: str
    amount_nano: Annotated[int, Field(gt=0)]
    by: str
    reason: str
    expires: datetime


class AccountConfig(Wire):
    """One budget of the tree. `name` and `parent` are `namespace/name`."""

    name: str
    parent: str | None = None
    cap_nano: int | None = None
    """None: only the ancestors' caps hold."""
    rollover_nano: int = 0
    """Most of what is unused that is carried into the next period."""
    borrowing: BorrowingConfig | None = None
    """None: it neither borrows nor lends."""
    top_ups: tuple[TopUpConfig, ...] = ()
    on_exceeded: OnExceeded = OnExceeded.BLOCK
    thresholds: tuple[Threshold, ...] = ()
    ladder: tuple[str, ...] = ()
    """Models, dearest first, never empty for a root whose providers have priced models."""
    providers: tuple[str, ...]
    """Names, in order of preference."""
    strategy: Strategy = Strategy.FIRST
    retries: int = 2
    consumers: tuple[ConsumerConfig, ...] = ()
    approved_period: str | None = None


class EndpointConfig(Wire):
    """One monitoring endpoint; `per_minute` requests of one client."""

    path: Literal["/metrics", "/health"]
    auth_required: bool
    per_minute: int


class PostHogConfig(Wire):
    """Where `llm_usage` events go. The key is in POSTHOG_KEY_FILE."""

    host: str
    allow_private: bool = False
    """Whether that may be a private address, and plain HTTP."""
    sample_rate: Decimal


class DatadogConfig(Wire):
    """Where metrics go. The key is in DATADOG_KEY_FILE."""

    url: str
    allow_private: bool = False
    """Whether that may be a private address: in tests only."""


class GatewayConfig(Wire):
    """The whole document. `generation` only grows; the gateway acknowledges it in each balance."""

    generation: Annotated[int, Field(ge=1)]
    root: str
    time_zone: str = "UTC"
    retention_months: int | None = None
    """How many whole months before the current one keep their single rows; None: all."""
    ledger: Literal["sqlite", "postgres"] = "sqlite"
    identity_mode: IdentityMode = IdentityMode.TOKEN_REVIEW
    operator: str
    """ServiceAccount `namespace/name` that may read /ledger/v1/balances and acknowledge actions."""
    accounts: tuple[AccountConfig, ...]
    """The root first, every parent before its children."""
    providers: tuple[ProviderConfig, ...]
    endpoints: tuple[EndpointConfig, ...]
    posthog: PostHogConfig | None = None
    datadog: DatadogConfig | None = None
    tracing: str | None = None
    """URL that spans go to, by OTLP over HTTP; None: nowhere."""
    tracing_private: bool = False
    """Whether that may be a private address."""

    def to_json(self) -> str:
        """Serialise deterministically: the same configuration gives the same bytes."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1)


def key_variable(provider: str) -> str:
    """Name the variable of a provider's key, as the 371OS guide does: OPENROUTER_API_KEY."""
    return re.sub(r"[^A-Z0-9]", "_", provider.upper()) + "_API_KEY"
