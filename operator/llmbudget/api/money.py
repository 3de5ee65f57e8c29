"""Money: integer nano-USD inside, decimal strings at the edges, no float anywhere.

1 USD = 10⁹ nano-USD. Prices are exact decimals, since many are not whole nano-dollars a token;
a cost is computed exactly and rounded up once.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Context, Decimal, Inexact
from typing import Final, NewType

Nano = NewType("Nano", int)
"""An amount in nano-USD."""

NANO_PER_USD: Final = 10**9
CAP_PATTERN: Final = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"
"""USD up to 999,999,999.999999999: at most 9 decimals, never negative, no exponent."""
PRICE_PATTERN: Final = r"^[0-9]{1,6}(\.[0-9]{1,12})?$"
"""USD for 1,000 tokens, at most 12 decimals."""

_CAP = re.compile(CAP_PATTERN, re.ASCII)
_PRICE = re.compile(PRICE_PATTERN, re.ASCII)
_EXACT = Context(prec=60, traps=[Inexact])


def parse_usd(text: str) -> Nano:
    """Convert a decimal string in USD to nano-USD, exactly.

    Raises:
        ValueError: the text is not a plain, non-negative decimal with at most 9 decimals.
    """
    if not _CAP.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no amount in USD: write a decimal such as 100.00")
    return Nano(int(_EXACT.multiply(Decimal(text), Decimal(NANO_PER_USD))))


def parse_price(text: str) -> Decimal:
    """Convert a price in USD for 1,000 tokens to nano-USD for one token, exactly.

    Raises:
        ValueError: the text is not a plain, non-negative decimal with at most 12 decimals.
    """
    if not _PRICE.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no price in USD for 1,000 tokens: write 0.0006")
    return _EXACT.multiply(Decimal(text), Decimal(NANO_PER_USD // 1000))


def format_usd(amount: int) -> str:
    """Write nano-USD as a decimal string in USD: at least 2 decimals, at most 9, exact."""
    sign = "-" if amount < 0 else ""
    whole, rest = divmod(abs(amount), NANO_PER_USD)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"


def round_up(amount: Decimal) -> Nano:
    """Round an exact amount in nano-USD up to a whole one: the only rounding there is."""
    return Nano(int(amount.to_integral_value(rounding=ROUND_CEILING, context=_EXACT)))
