"""Rates of a model by the length of a call's input."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Context, Decimal, Inexact
from typing import Final

from llmbudget.contract.config import COUNTERPARTS, Prices, Rates, RatesByLength, Tier

EXACT: Final = Context(prec=60, traps=[Inexact])
"""Arithmetic of prices: it never rounds by itself."""


def by_length(lengths: Mapping[int, Rates]) -> Prices:
    """Make prices of the rates of each length, shortest first."""
    return Prices.model_validate(rates_by_length(lengths).model_dump())


def rates_by_length(lengths: Mapping[int, Rates]) -> RatesByLength:
    """Join the rates of each length, shortest first, and put the dearest of each before them."""
    tiers = [Tier(above=above, **rates.model_dump()) for above, rates in lengths.items()]
    dearest = dearest_of(lengths.values())
    return RatesByLength.model_validate(dearest | {"tiers": tuple(tiers) if len(tiers) > 1 else ()})


def dearest_of(found: Collection[Rates]) -> dict[str, object]:
    """Take each rate's highest value."""
    dearest: dict[str, object] = {
        name: max(rates.effective(name) for rates in found) for name in Rates.model_fields
    }
    for name, other in COUNTERPARTS.items():
        dearest[name] = None if dearest[name] == dearest[other] else dearest[name]
    return dearest


def multiplied(rates: Rates, factor: Decimal) -> Rates:
    given = {name: getattr(rates, name) for name in Rates.model_fields}
    return Rates.model_validate(
        {name: rate and EXACT.multiply(rate, factor) for name, rate in given.items()}
    )
