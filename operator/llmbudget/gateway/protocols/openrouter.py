"""What OpenRouter is told beside the request: to choose no provider that asks more than is held."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from llmbudget.decide.catalogue import Offer
from llmbudget.decide.vendors import Vendor, vendor_of

_MILLION: Final = Decimal(1000)
"""Nano-USD for one token are USD for a million, divided by this."""


def dearest_provider(offer: Offer) -> dict[str, object]:
    """Write the dearest prices of a provider that may be chosen, in USD for a million tokens as
    OpenRouter reads them (`provider.max_price`); empty anywhere else."""
    prices = offer.prices
    if prices is None or vendor_of(offer.provider.endpoint) is not Vendor.OPENROUTER:
        return {}
    rates = (prices, *prices.tiered)
    most = {
        "prompt": _written(max(each.input for each in rates)),
        "completion": _written(max(each.output for each in rates)),
    }
    return {"provider": {"max_price": most}}


def _written(nano: Decimal) -> str:
    return format((nano / _MILLION).normalize(), "f")
