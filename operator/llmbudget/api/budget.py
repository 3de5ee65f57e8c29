"""LLMBudget: a monthly amount of money, who may spend it, on what, and what happens as it goes. Its
status is in `budget_status`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from llmbudget.api.budget_rules import spec_rules
from llmbudget.api.gateway_spec import (
    Deployment,
    GlobalDistribution,
    HighAvailability,
    LedgerSpec,
    Monitoring,
    Network,
)
from llmbudget.api.model import (
    SET,
    EnvName,
    Instant,
    LabelName,
    Labels,
    LocalRef,
    Model,
    ModelName,
    ObjectName,
    Usd,
    UsdAboveZero,
    keyed_by,
    rules,
)

Percentage = Annotated[int, Field(ge=1, le=100)]


ZONE: Final = r"^[A-Za-z][A-Za-z0-9+_-]*(/[A-Za-z0-9+_-]+){0,2}$"
"""Shape of a time zone's name; whether it exists is for the operator to find out."""


class Profile(StrEnum):
    """The three production files of the 371OS guide, as defaults."""

    SMB = "smb"
    ENTERPRISE = "enterprise"
    GLOBAL = "global"


class Action(StrEnum):
    """What a crossed threshold does. All but the last three only tell people."""

    NOTIFY_ADMIN = "notify_admin"
    NOTIFY_FINANCE_TEAM = "notify_finance_team"
    NOTIFY_EXECUTIVES = "notify_executives"
    REGIONAL_ALERT = "regional_alert"
    CROSS_REGION_REVIEW = "cross_region_review"
    EXECUTIVE_INTERVENTION = "executive_intervention"
    DOWNGRADE_MODELS = "downgrade_models"
    ENFORCE_STRICT_DOWNGRADE = "enforce_strict_downgrade"


class OnExceeded(StrEnum):
    """What happens to calls when the cap is reached."""

    BLOCK = "Block"
    DOWNGRADE = "Downgrade"


class Strategy(StrEnum):
    """How `model: auto` chooses."""

    FIRST = "first"
    CHEAPEST = "cheapest"
    FASTEST = "fastest"


class IdentityMode(StrEnum):
    """How a caller's ServiceAccount token is verified."""

    TOKEN_REVIEW = "TokenReview"  # noqa: S105
    OFFLINE = "Offline"


class ParentRef(Model):
    """The budget that this one is a part of; every call is charged to the whole path."""

    namespace: LabelName | None = None
    """Namespace of the parent, default the same; the parent must allow this one's."""
    name: ObjectName
    """Name of the parent."""


class AllowedChildren(Model):
    """Namespaces whose budgets may name this one as their parent, besides its own."""

    namespaces: Annotated[list[LabelName], Field(max_length=256, json_schema_extra=SET)]
    """Names of namespaces."""


class AlertThreshold(Model):
    """At this share of the cap, do this. Each fires once a period."""

    percentage: Percentage
    """Percent of the cap that is spent, more than 0 and at most 100."""
    action: Action
    """What to do when it is crossed; docs/371os.md has a table."""


class Rollover(Model):
    """Carry unused money into the next period. Top-ups are not carried."""

    maximum: Usd
    """Most that is carried, in USD, what came from earlier periods among it."""


class Borrowing(Model):
    """Borrow idle money of siblings that have `borrowing` too, within the parent's cap. A lender
    gets back at once what is neither spent nor held."""

    limit: Usd
    """Most that this budget borrows, in USD; 0: it only lends."""
    lending_limit: Usd | None = None
    """Most that this budget lends, in USD; default: all that is idle."""


class TopUp(Model):
    """Money beyond the cap, granted once: for the period in which the gateway takes it over."""

    model_config = {
        "json_schema_extra": rules(
            ("self.amount.matches('[1-9]')", "the amount of a top-up is above 0"),
            (
                "self == oldSelf",
                "a top-up can't be changed: remove it, or add another one with another id",
            ),
        )
    }

    id: LabelName
    """Identifies it for good: the ledger takes an id over once."""
    amount: UsdAboveZero
    """USD, above 0."""
    by: Annotated[str, Field(min_length=1, max_length=128)]
    """Who granted it."""
    reason: Annotated[str, Field(min_length=1, max_length=256)]
    """Why."""
    expires: Instant
    """When it ends, RFC 3339; at the latest with its period."""


class Money(Model):
    """The money: how much, by whose calendar, and what happens as it is spent."""

    monthly_cap: Usd | None = None
    """USD a month, as a decimal string. A root without profile: 20.00; a child without one is held
    by its ancestors' caps only."""
    time_zone: Annotated[str, Field(pattern=ZONE, max_length=64)] | None = None
    """IANA time zone whose months count, default UTC; roots only; a change applies from the next
    period."""
    on_exceeded: OnExceeded = OnExceeded.BLOCK
    """Block: no call goes on. Downgrade: models that cost nothing go on."""
    alert_thresholds: Annotated[
        list[AlertThreshold],
        Field(max_length=16, json_schema_extra=keyed_by("percentage")),
    ] = []
    """Actions at shares of the cap, each percentage once."""
    rollover: Rollover | None = None
    """Carry unused money into the next period."""
    borrowing: Borrowing | None = None
    """Borrow from and lend to siblings."""
    top_ups: Annotated[list[TopUp], Field(max_length=32, json_schema_extra=keyed_by("id"))] = []
    """Money beyond the cap in this period. The ledger keeps a trace of each."""


class Routing(Model):
    """How a provider is chosen and what happens when it fails."""

    strategy: Strategy = Strategy.FIRST
    """For `model: auto`: the first, cheapest or fastest model that fits."""
    retries: Annotated[int, Field(ge=0, le=5)] = 2
    """How many further providers or attempts follow a failed one."""


class Downgrade(Model):
    """Cheaper models, to be used as money runs out."""

    model_config = {
        "json_schema_extra": rules(
            (
                "self.ladder.all(step, self.ladder.exists_one(other, other == step))",
                "the ladder names a model twice: name each step once, dearest first",
            ),
        )
    }

    ladder: Annotated[list[ModelName], Field(min_length=1, max_length=16)]
    """Models, dearest first; default: the providers' models by price. `downgrade_models` takes one
    step, `enforce_strict_downgrade` goes to the last."""


class RateLimits(Model):
    """Limits of one consumer."""

    requests_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Calls a minute."""
    tokens_per_minute: Annotated[int, Field(ge=1, le=10_000_000_000)] | None = None
    """Tokens a minute, input and output."""
    concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Calls under way at once."""


class EnvelopeLimits(Model):
    """What a ServiceAccount may set aside for its tasks."""

    maximum: Usd
    """Most USD that its open envelopes hold together."""
    count: Annotated[int, Field(ge=1, le=1000)]
    """Most envelopes that it has open at once."""


class Consumer(Model):
    """Who may spend: the ServiceAccounts of a namespace, proved by their token."""

    namespace: LabelName
    """Namespace of the ServiceAccounts."""
    service_accounts: (
        Annotated[
            list[ObjectName],
            Field(max_length=64, min_length=1, json_schema_extra=SET),
        ]
        | None
    ) = None
    """Names of ServiceAccounts; default: all of the namespace."""
    agent: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Name that is written in the ledger's rows; default: the ServiceAccount's."""
    rate_limits: RateLimits | None = None
    """Limits for each ServiceAccount of this entry; each gateway pod counts by itself."""
    envelopes: EnvelopeLimits | None = None
    """Envelopes that each ServiceAccount of this entry may open for its tasks; default: none."""


class LabelSelector(Model):
    """Labels that a Deployment must carry."""

    match_labels: Annotated[Labels, Field(min_length=1, max_length=16)]
    """Label names and values, all of which must match."""


class Target(Model):
    """Deployments whose model variable is changed on a downgrade. Each consents by its annotations
    llmbudget.io/allow-budget and llmbudget.io/model-env."""

    namespace: LabelName
    """Namespace of the Deployments."""
    selector: LabelSelector
    """Which Deployments."""
    container: LabelName | None = None
    """Container whose variable is changed; default: the first."""
    env: EnvName
    """The variable that holds the model's name."""


class Identity(Model):
    """How callers are identified."""

    mode: IdentityMode = IdentityMode.TOKEN_REVIEW
    """TokenReview asks the API server; Offline verifies with the cluster's OIDC keys."""


class Notifications(Model):
    """How people are told of crossed thresholds."""

    secret_ref: LocalRef
    """Secret of the same namespace with the keys admin, financeTeam, executives, regionalOwners,
    onCall: apprise URLs, one a line."""


class BudgetSpec(Model):
    """A monthly cap for LLM calls: who may spend it, at which providers, and what happens as it is
    used up."""

    model_config = {"json_schema_extra": spec_rules()}

    profile: Profile | None = None
    """The 371OS guide's production file whose values are the defaults of everything below."""
    parent_ref: ParentRef | None = None
    """Budget that this one is a part of; immutable."""
    allowed_children: AllowedChildren | None = None
    """Which other namespaces' budgets may be parts of this one."""
    budget: Money = Money()
    """The monthly cap, what raises it, and its thresholds."""
    providers: Annotated[
        list[LocalRef],
        Field(max_length=32, json_schema_extra=keyed_by("name")),
    ] = []
    """LLMProviders that may be called, in order of preference. A root's are in its namespace; a
    child chooses among its root's by name, default all."""
    routing: Routing = Routing()
    """How a provider is chosen."""
    downgrade: Downgrade | None = None
    """Cheaper models, to be used as money runs out."""
    consumers: Annotated[list[Consumer], Field(max_length=64)] = []
    """Who may spend."""
    targets: Annotated[list[Target], Field(max_length=32)] = []
    """Deployments that are moved to a cheaper model."""
    notifications: Notifications | None = None
    """How people are told of crossed thresholds."""
    identity: Identity = Identity()
    """How callers are identified."""
    deployment: Deployment = Deployment()
    """The gateway's pods."""
    high_availability: HighAvailability = HighAvailability()
    """Autoscaling of the gateway."""
    global_distribution: GlobalDistribution = GlobalDistribution()
    """Gateways in several regions."""
    ledger: LedgerSpec = LedgerSpec()
    """Where the money is counted."""
    network: Network = Network()
    """What the gateway's NetworkPolicy allows."""
    monitoring: Monitoring = Monitoring()
    """Metrics, analytics and traces."""
