"""How much a call may cost at most: the amount of its hold.

Input. A tokeniser makes at most one token of a byte, so the prompt's UTF-8 bytes bound its tokens,
counted in the longest of the Unicode forms that tokenisers convert to before they cut. The model's
context bounds them too, where someone has said how long it is: a longer prompt is refused by the
provider. An image counts as its provider documents at most, or as a whole context.
What the provider adds counts as well: markers around each message and a preamble, and for tools
and output schemas their rendering, which may be indented or turned into another notation. All of
these are counted at several times what known templates need.

Output. A model stops at the request's limit, `n` times. The caller's own limit is taken as it is,
even above the model's `maxOutput`: the provider may know better than the configuration, and the
hold must still bound what it sends. A limit that the caller left out becomes the model's default,
or what the balance still covers.

Rates. Which tokens are read from or written to a cache, and which are spent on reasoning, is the
provider's affair, so all of them are taken at the dearest rate, and at the dearest of any length
where long inputs have prices of their own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact
from functools import lru_cache
from typing import Final
from unicodedata import normalize

from llmbudget.api.money import Nano, round_up
from llmbudget.contract.config import ModelConfig, Prices

REQUEST_OVERHEAD: Final = 128
"""Tokens that a provider may put before any prompt."""
MESSAGE_OVERHEAD: Final = 16
"""Tokens around one message: role, name, markers. Known templates use 3 to 8."""
SCHEMA_OVERHEAD: Final = 1024
"""Tokens of the instructions that come with tools or an output schema. Known: up to 530."""
SCHEMA_FACTOR: Final = 3
"""Tokens for one byte of a schema: `[1,1]` indented is a token each for space, 1 and comma."""

_ABSURD: Final = 10
_BYTES_PER_TOKEN: Final = 3
_EXACT: Final = Context(prec=60, traps=[Inexact])


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request may make a model read and write."""

    prompt_bytes: int
    """`longest_form` of everything that reaches the model but schemas."""
    messages: int
    schema_bytes: int = 0
    """`longest_form` of the tools and of the output's schema."""
    choices: int = 1
    """Answers that are asked for (`n`)."""
    limit: int | None = None
    """Output limit of the request, tokens for each answer; None: the request sets none."""
    images: int = 0
    contexts: int = 1
    """Inputs that are read each by itself; 0: nothing that is charged is read."""


class Unbounded(Exception):
    """Nothing bounds what a model reads."""


def longest_form(text: bytes) -> int:
    """Bound the bytes of valid UTF-8 in any form that a tokeniser may give it.

    Each character is taken in its own longest form. Composing never adds bytes, and normalising a
    whole text takes time that grows with the square of its combining marks.
    """
    if text.isascii():
        return len(text)
    return sum(times * _longest(each) for each, times in Counter(text.decode()).items())


@lru_cache(maxsize=65_536)
def _longest(character: str) -> int:
    forms = (character, normalize("NFD", character), normalize("NFKD", character))
    return max(len(form.encode()) for form in forms)


def input_bound(demand: Demand, model: ModelConfig) -> int:
    """Bound the input in tokens.

    Raises:
        Unbounded: it has images, and nobody knows what one costs at most.
    """
    schema = SCHEMA_OVERHEAD + SCHEMA_FACTOR * demand.schema_bytes if demand.schema_bytes else 0
    wrapping = REQUEST_OVERHEAD + MESSAGE_OVERHEAD * demand.messages
    text = demand.prompt_bytes + wrapping + schema
    each = model.image_tokens or model.context_bound
    if demand.images and each is None:
        raise Unbounded
    read = text + demand.images * (each or 0)
    if model.context_bound is None:
        return read if demand.contexts else 0
    return min(read, model.context_bound * demand.contexts)


def default_limit(demand: Demand, model: ModelConfig) -> int:
    """Tell the output limit for each answer: the request's, else the model's default."""
    if demand.limit is not None:
        return demand.limit
    return min(model.default_max_output, model.max_output)


def upper_bound(demand: Demand, model: ModelConfig, prices: Prices, limit: int) -> Nano:
    """Bound the cost of a call whose answers have at most `limit` tokens each, in nano-USD."""
    spent_in = _EXACT.multiply(input_bound(demand, model), dearest_input(prices))
    return round_up(_EXACT.fma(limit * demand.choices, dearest_output(prices), spent_in))


def affordable_limit(
    demand: Demand, model: ModelConfig, prices: Prices, remaining: Nano | None
) -> int | None:
    """Choose the output limit: the largest up to the default whose bound the balance covers.

    A limit that the request sets is never lowered. `remaining` None: there is no cap.

    Returns:
        Tokens for each answer, at least 1; None where the balance doesn't cover the call.
    """
    limit = default_limit(demand, model)
    if remaining is None or upper_bound(demand, model, prices, limit) <= remaining:
        return limit
    if demand.limit is not None:
        return None
    # Not the default fits, so either the input alone is too dear or output costs something.
    spent_in = _EXACT.multiply(input_bound(demand, model), dearest_input(prices))
    left = _EXACT.subtract(Decimal(remaining), spent_in)
    rate = _EXACT.multiply(demand.choices, dearest_output(prices))
    if left < rate or not rate:
        return None
    return int(_EXACT.divide_int(left, rate))


def to_hold(
    demand: Demand, model: ModelConfig, prices: Prices, remaining: Nano | None
) -> tuple[int, Nano]:
    """Choose the output limit that `remaining` affords, else the default one, which the ledger then
    refuses: it knows whose cap is too low. The bound of the call's cost goes with it.

    Raises:
        Unbounded.
    """
    limit = default_limit(demand, model)
    amount = upper_bound(demand, model, prices, limit)
    if remaining is not None and amount > remaining:
        less = affordable_limit(demand, model, prices, remaining)
        if less is not None:
            return less, upper_bound(demand, model, prices, less)
    return limit, amount


def dearest_input(prices: Prices) -> Decimal:
    """Tell the dearest rate that an input token may have."""
    return max(prices.input, prices.cached_input, prices.cache_write, prices.hour)


def dearest_output(prices: Prices) -> Decimal:
    """Tell the dearest rate that an output token may have."""
    return max(prices.output, prices.reasoning)


def fits(demand: Demand, model: ModelConfig) -> bool:
    """Estimate whether the context holds prompt and answer, at three bytes for a token.

    An estimate for choosing among models, where the bound would rule out most of them; a call
    that doesn't fit after all is refused by the provider and costs nothing.
    """
    read = (demand.prompt_bytes + demand.schema_bytes) // _BYTES_PER_TOKEN
    return read + (demand.limit or 1) <= model.max_context


def expected_cost(demand: Demand, model: ModelConfig, prices: Prices) -> Decimal:
    """Estimate a call's cost in nano-USD, for comparing models."""
    read = (demand.prompt_bytes + demand.schema_bytes) // _BYTES_PER_TOKEN
    written = default_limit(demand, model) * demand.choices
    rates = prices.charged(read)
    return _EXACT.fma(written, rates.output, _EXACT.multiply(read, rates.input))


def plausible_tokens(demand: Demand, model: ModelConfig, limit: int) -> int:
    """Tell above which count a provider's usage figure is no figure any more, but garbage.

    Generous, since what a provider really charges beyond the hold must be recorded in full.
    """
    read = max(model.max_context * demand.contexts, input_bound(demand, model))
    return _ABSURD * (read + limit * demand.choices)
