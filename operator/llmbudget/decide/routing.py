"""Which provider and model answer a call, and which come next when one fails.

A caller names a model, a model at a provider, or leaves the choice to the gateway: `auto`,
`auto:first`, `auto:cheapest`, `auto:fastest`. Ceilings of the path apply to all of them. Routing
never crosses protocols: the caller's SDK reads only its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Final

from llmbudget.api.budget import Strategy
from llmbudget.api.provider import Protocol
from llmbudget.contract.config import Unit
from llmbudget.decide.bounds import Demand, expected_cost, fits
from llmbudget.decide.catalogue import Catalogue, Offer
from llmbudget.decide.media import searches_by_itself

AUTO: Final = "auto"
_STRATEGIES: Final = frozenset(Strategy)
_MOST_REMEMBERED: Final = 1024
"""Routes of named models that are remembered."""


class Reason(StrEnum):
    """Why nothing can answer a call."""

    UNKNOWN = "model_not_found"
    """The account has no such model in this protocol."""
    UNPRICED = "model_unpriced"
    """Nobody knows what the model costs."""
    TOO_LONG = "context_length_exceeded"
    """No model's context holds the request."""
    DOWNGRADED = "model_downgraded"
    """The ceiling leaves no model in this protocol, or no free one when the cap is reached."""


class NoRoute(Exception):
    """Nothing can answer the call. `choices` are the models that could."""

    def __init__(self, reason: Reason, message: str, choices: Sequence[str]) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.choices = tuple(choices)


@dataclass(frozen=True, slots=True)
class Route:
    """Offers to try, in this order."""

    offers: tuple[Offer, ...]
    """At least one, at most one more than the account's retries; all have prices."""
    downgraded_from: str | None
    """The model that would have answered without the ceiling; None: there was no downgrade."""


def route(
    catalogue: Catalogue,
    wanted: str,
    protocol: Protocol,
    demand: Demand,
    levels: Mapping[str, int],
) -> Route:
    """Find the offers for a call.

    `levels` gives the downgrade level of each account of the path, by name; missing: 0.

    Raises:
        NoRoute.
    """
    strategy = _strategy(catalogue, wanted)
    if strategy is None:
        by_account = tuple([levels.get(name, 0) for name in catalogue.names])
        return _at_levels(catalogue, wanted, protocol, demand.charged_by, by_account)
    return _automatic(catalogue, strategy, protocol, demand, catalogue.lowering(levels))


def only_named(catalogue: Catalogue, wanted: str, protocol: Protocol, demand: Demand) -> Route:
    """Find the offers of a model that nothing else can stand in for, such as one for embeddings.

    Raises:
        NoRoute: it is not on offer, or it is left to the gateway to choose.
    """
    return _named(catalogue, wanted, protocol, demand.charged_by, lambda name: name)


def free_route(catalogue: Catalogue, wanted: str, protocol: Protocol, demand: Demand) -> Route:
    """Find offers that cost nothing, for a budget that goes on with those alone.

    First the model itself, then the ladder's free models in its order, then all others.

    Raises:
        NoRoute: none is free.
    """
    free = [o for o in catalogue.speaking(protocol) if o.free and fits(demand, o.model)]
    if not free:
        raise NoRoute(Reason.DOWNGRADED, "The budget is spent and no model is free.", ())
    ranks = {name: index for index, name in enumerate(catalogue.ladders[-1])}
    free.sort(
        key=lambda offer: (
            wanted not in (offer.name, offer.qualified),
            ranks.get(offer.name, len(ranks)),
        )
    )
    asked = wanted in (free[0].name, free[0].qualified) or _strategy(catalogue, wanted)
    return _limited(catalogue, free, None if asked else wanted)


def allowed_models(
    catalogue: Catalogue, protocol: Protocol, levels: Mapping[str, int]
) -> tuple[str, ...]:
    """List the models that the ceilings leave in a protocol, in order of preference."""
    lower = catalogue.lowering(levels)
    names = dict.fromkeys(offer.name for offer in catalogue.speaking(protocol))
    return tuple(name for name in names if lower(name) == name)


def _strategy(catalogue: Catalogue, wanted: str) -> Strategy | None:
    """Tell how to choose; None: the caller named a model."""
    if wanted == AUTO:
        return catalogue.account.strategy
    prefix, colon, name = wanted.partition(":")
    if prefix == AUTO and colon and name in _STRATEGIES:
        return Strategy(name)
    return None


@lru_cache(maxsize=_MOST_REMEMBERED)
def _at_levels(
    catalogue: Catalogue,
    wanted: str,
    protocol: Protocol,
    units: frozenset[Unit],
    levels: tuple[int, ...],
) -> Route:
    """Find the offers of a model that the caller named: the same ones until the levels change. Only
    names that lead somewhere are remembered."""
    by_account = dict(zip(catalogue.names, levels, strict=True))
    return _named(catalogue, wanted, protocol, units, catalogue.lowering(by_account))


def _named(
    catalogue: Catalogue,
    wanted: str,
    protocol: Protocol,
    units: frozenset[Unit],
    lower: Callable[[str], str | None],
) -> Route:
    speaking = catalogue.speaking(protocol, units)
    # A model's own name may contain a slash, so it goes before PROVIDER/name.
    found = [o for o in speaking if o.name == wanted] or [
        o for o in speaking if o.qualified == wanted
    ]
    if not found:
        raise _missing(catalogue, wanted, protocol, units)
    name = found[0].name
    below = lower(name)
    if below == name:
        return _limited(catalogue, found, None)
    steps = [offer for offer in speaking if offer.name == below]
    if not steps:
        raise _no_step(wanted, below, _still_allowed(speaking, lower))
    return _limited(catalogue, steps, name)


def _automatic(
    catalogue: Catalogue,
    strategy: Strategy,
    protocol: Protocol,
    demand: Demand,
    lower: Callable[[str], str | None],
) -> Route:
    speaking = catalogue.speaking(protocol)
    if not speaking:
        raise _missing(catalogue, AUTO, protocol, demand.charged_by)
    fitting = _ordered([o for o in speaking if fits(demand, o.model)], strategy, demand)
    if not fitting:
        longest = max(offer.model.max_context for offer in speaking)
        message = f"The request is longer than the largest context, {longest} tokens."
        raise NoRoute(Reason.TOO_LONG, message, ())
    allowed = [offer for offer in fitting if lower(offer.name) == offer.name]
    if not allowed:
        raise _no_step(fitting[0].name, None, _still_allowed(speaking, lower))
    moved = fitting[0].name != allowed[0].name
    return _limited(catalogue, allowed, fitting[0].name if moved else None)


def _ordered(offers: list[Offer], strategy: Strategy, demand: Demand) -> list[Offer]:
    """Sort by strategy; the order of preference decides between equals."""

    def price(offer: Offer) -> Decimal:
        return expected_cost(demand, offer.model, offer.prices) if offer.prices else Decimal(0)

    if strategy is Strategy.CHEAPEST:
        return sorted(offers, key=price)
    if strategy is Strategy.FASTEST:
        return sorted(offers, key=lambda offer: offer.model.latency_ms)
    return offers


def _limited(catalogue: Catalogue, offers: Sequence[Offer], downgraded_from: str | None) -> Route:
    return Route(tuple(offers[: catalogue.account.retries + 1]), downgraded_from)


def _still_allowed(offers: Iterable[Offer], lower: Callable[[str], str | None]) -> tuple[str, ...]:
    names = dict.fromkeys(offer.name for offer in offers)
    return tuple(name for name in names if lower(name) == name)


def _no_step(wanted: str, below: str | None, allowed: Sequence[str]) -> NoRoute:
    step = f"its step {below} speaks another protocol" if below else "no step below is on offer"
    still = f"still allowed: {', '.join(allowed)}" if allowed else "none is allowed any more"
    message = f"Model {wanted} is above the downgrade's ceiling and {step}; {still}."
    return NoRoute(Reason.DOWNGRADED, message, allowed)


def _missing(
    catalogue: Catalogue, wanted: str, protocol: Protocol, units: frozenset[Unit]
) -> NoRoute:
    """Say why a name leads nowhere."""
    choices = tuple(dict.fromkeys(offer.name for offer in catalogue.speaking(protocol, units)))
    named = [o for o in catalogue.offers if wanted in (o.name, o.qualified)]
    if any(offer.provider.protocol is protocol for offer in named):
        by = " or ".join(sorted(units))
        message = f"Model {wanted} has no price by the {by}: set its cost in the LLMProvider."
        if any(searches_by_itself(offer.name, offer.model.upstream_name) for offer in named):
            message = f"Model {wanted} searches the web by itself, and nobody knows how often."
        return NoRoute(Reason.UNPRICED, message, choices)
    others = sorted({offer.provider.protocol for offer in named})
    why = f"is offered in the protocol {others[0]} only" if others else "is not offered"
    # What the caller made up may be of any length.
    message = (
        f"Model {wanted[:128]} {why} to budget {catalogue.account.name}: GET /v1/models lists those"
        " that are."
    )
    return NoRoute(Reason.UNKNOWN, message, choices)
