"""Rules on the whole spec of an LLMBudget, in CEL: what one field means for another.

They stand on the spec, not on the fields, so that removing a field is caught too. A profile sets
values that the API server doesn't see: where a field is absent, the rules reckon with the
profile's. What needs a second object (a parent, a Secret) is checked by the operator.
"""

from __future__ import annotations

from typing import Final

from pydantic.config import JsonDict

from llmbudget.api.model import rules

GATEWAY_FIELDS: Final = (
    "identity",
    "deployment",
    "highAvailability",
    "globalDistribution",
    "ledger",
    "network",
    "monitoring",
)
"""Fields that shape a gateway: a child budget has none of its own."""

_CHILD: Final = "has(self.parentRef)"
_POSTGRES: Final = "has(self.ledger) && has(self.ledger.postgres)"
_REPLICAS: Final = (
    "has(self.deployment) && has(self.deployment.replicas) ? self.deployment.replicas > 1"
    " : has(self.profile) && self.profile in ['enterprise', 'global']"
)
_SCALING: Final = (
    "has(self.highAvailability) && has(self.highAvailability.enabled)"
    " ? self.highAvailability.enabled : has(self.profile) && self.profile == 'enterprise'"
)
_REGIONS: Final = (
    "has(self.globalDistribution) && has(self.globalDistribution.regions)"
    " ? size(self.globalDistribution.regions) > 0"
    " : has(self.profile) && self.profile == 'global'"
)


def spec_rules() -> JsonDict:
    """All rules of the spec, as a schema extra."""
    return rules(*_IMMUTABLE, *_needs_postgres(), *_child_rules(), *_ROOT, *_SLICED, *_PARTS)


def _needs_postgres() -> tuple[tuple[str, str], ...]:
    def rule(asked: str, message: str) -> tuple[str, str]:
        return f"{_POSTGRES} || {_CHILD} || !({asked})", message

    return (
        rule(
            _REPLICAS,
            "several replicas need a PostgreSQL ledger: set ledger.postgres or deployment.replicas"
            " to 1",
        ),
        rule(
            _SCALING,
            "autoscaling needs a PostgreSQL ledger: set ledger.postgres or"
            " highAvailability.enabled to false",
        ),
        rule(
            _REGIONS,
            "regions need a PostgreSQL ledger: set ledger.postgres or"
            " globalDistribution.regions to []",
        ),
    )


def _child_rules() -> tuple[tuple[str, str], ...]:
    gateway = " || ".join(f"has(self.{field})" for field in GATEWAY_FIELDS)
    return (
        (
            f"!{_CHILD} || !({gateway})",
            "a child budget has no gateway of its own: remove identity, deployment,"
            " highAvailability, globalDistribution, ledger, network and monitoring, or set them on"
            " its root",
        ),
        (
            f"!{_CHILD} || !has(self.budget) || !has(self.budget.timeZone)",
            "a child budget has no calendar of its own: set budget.timeZone on its root",
        ),
    )


_IMMUTABLE: Final = (
    (
        "has(self.parentRef) == has(oldSelf.parentRef) && "
        "(!has(self.parentRef) || self.parentRef == oldSelf.parentRef)",
        "parentRef is immutable: delete the budget and create it elsewhere;"
        " its ledger account stays",
    ),
    (
        f"({_POSTGRES}) == (has(oldSelf.ledger) && has(oldSelf.ledger.postgres))",
        "the ledger's engine can't change in place, the month's spend is in the old one: delete"
        " the budget and create it again to begin with an empty ledger",
    ),
)

_ROOT: Final = (
    (
        f"{_CHILD} || (has(self.providers) && size(self.providers) > 0)",
        "a root budget needs at least one provider: name an LLMProvider in providers",
    ),
    (
        f"{_CHILD} || !has(self.budget) || !has(self.budget.borrowing)",
        "a root budget has no siblings to borrow from: remove budget.borrowing",
    ),
)

_DATABASES: Final = (
    "has(self.globalDistribution) && has(self.globalDistribution.regions)"
    " && self.globalDistribution.regions.exists(region, has(region.postgres))"
)
_SLICES: Final = "has(self.ledger.mode) && self.ledger.mode == 'Slices'"

_SLICED: Final = (
    (
        f"!has(self.ledger) || !({_SLICES}) || ({_DATABASES})",
        "slices are for regions that have a database of their own, and there is none: set"
        " globalDistribution.regions[].postgres or remove ledger.mode",
    ),
    (
        f"!({_DATABASES}) || (has(self.ledger) && {_SLICES})",
        "nothing is counted in a region's database without slices: set ledger.mode to Slices or"
        " remove globalDistribution.regions[].postgres",
    ),
    (
        "!has(self.ledger) || !has(self.ledger.postgres) || !has(self.globalDistribution)"
        " || !has(self.globalDistribution.regions)"
        " || self.globalDistribution.regions.all(region, !has(region.postgres)"
        " || region.postgres.secretKeyRef.name != self.ledger.postgres.secretKeyRef.name"
        " || region.postgres.secretKeyRef.key != self.ledger.postgres.secretKeyRef.key)",
        "a region names the ledger's own database: give it one, or a schema and a role, of its own",
    ),
    (
        "!has(self.globalDistribution) || !has(self.globalDistribution.serviceAnnotations)"
        " || has(self.globalDistribution.trafficManager)"
        " || (has(self.profile) && self.profile == 'global')",
        "serviceAnnotations are for the traffic manager's Service: set"
        " globalDistribution.trafficManager or remove serviceAnnotations",
    ),
)

_PARTS: Final = (
    (
        "!has(self.monitoring) || !has(self.monitoring.distributedTracing)"
        " || !has(self.monitoring.distributedTracing.enabled)"
        " || !self.monitoring.distributedTracing.enabled"
        " || has(self.monitoring.distributedTracing.collector)"
        " || (has(self.profile) && self.profile == 'global')",
        "distributed tracing needs a collector: set monitoring.distributedTracing.collector to"
        " HOST:PORT",
    ),
)
