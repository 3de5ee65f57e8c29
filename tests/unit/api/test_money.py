"""Money: exact both ways, and nothing but plain decimals gets in."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.api.money import NANO_PER_USD, format_usd, parse_price, parse_usd, round_up

CAPS = st.integers(min_value=0, max_value=10**18 - 1)

NOT_MONEY = [
    "",
    " ",
    "-1",
    "+1",
    "-0",
    "NaN",
    "nan",
    "Infinity",
    "1e9",
    "1E9",
    "1e999999999",
    "1.",
    ".5",
    "1,00",
    "1_000",
    "0x10",
    " 1",
    "1 ",
    "1\n",
    "1\x00",
    "$1",
    "١٠٠",
    "1.000000000000000000000000000001",
    "9" * 30,
]


@given(CAPS)
def test_usd_round_trip(amount: int) -> None:
    assert parse_usd(format_usd(amount)) == amount


@given(CAPS)
def test_usd_is_written_exactly(amount: int) -> None:
    text = format_usd(amount)
    assert Fraction(text) == Fraction(amount, NANO_PER_USD)
    assert 2 <= len(text.partition(".")[2]) <= 9


@given(st.integers(min_value=0, max_value=10**9 - 1), st.text("0123456789", max_size=9))
def test_usd_is_read_exactly(whole: int, decimals: str) -> None:
    text = f"{whole}.{decimals}" if decimals else str(whole)
    assert Fraction(parse_usd(text), NANO_PER_USD) == Fraction(text)


@given(st.integers(min_value=0, max_value=10**6 - 1), st.text("0123456789", max_size=12))
def test_price_is_read_exactly(whole: int, decimals: str) -> None:
    text = f"{whole}.{decimals}" if decimals else str(whole)
    assert Fraction(parse_price(text)) == Fraction(text) * NANO_PER_USD / 1000


@given(st.text(max_size=40))
def test_usd_reads_what_it_understands_or_refuses(text: str) -> None:
    try:
        amount = parse_usd(text)
    except ValueError:
        return
    assert text.isascii()
    assert Fraction(amount, NANO_PER_USD) == Fraction(text)


@pytest.mark.parametrize("text", [*NOT_MONEY, "1.0000000001", "1000000000"])
def test_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a decimal such as 100\.00"):
        parse_usd(text)


@pytest.mark.parametrize("text", [*NOT_MONEY, "0.0000000000001", "1000000"])
def test_no_price(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 0\.0006"):
        parse_price(text)


def test_an_error_quotes_little() -> None:
    with pytest.raises(ValueError, match="is no amount") as caught:
        parse_usd("9" * 100_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (100 * NANO_PER_USD, "100.00"),
        (96_100_000_000, "96.10"),
        (-1_500_000_000, "-1.50"),
        (-1, "-0.000000001"),
    ],
)
def test_written_form(amount: int, text: str) -> None:
    assert format_usd(amount) == text


@pytest.mark.parametrize(("text", "nano"), [("0.0006", "600"), ("0.00000015", "0.15"), ("0", "0")])
def test_prices_may_be_fractions_of_a_nano_dollar(text: str, nano: str) -> None:
    assert parse_price(text) == Decimal(nano)


@given(st.decimals(min_value=0, max_value=10**18, places=9, allow_nan=False))
def test_rounding_up_adds_less_than_one(amount: Decimal) -> None:
    rounded = round_up(amount)
    assert 0 <= Fraction(rounded) - Fraction(amount) < 1


def test_rounding_up_leaves_whole_amounts() -> None:
    assert round_up(Decimal("7")) == 7
    assert round_up(Decimal("7.000000000001")) == 8
