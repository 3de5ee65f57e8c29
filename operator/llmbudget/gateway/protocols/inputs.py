"""Inputs that come as text, as tokens, or as lists of either, each read by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmbudget.decide.bounds import longest_form
from llmbudget.gateway.protocols import fields as read
from llmbudget.gateway.protocols.fields import bad

MAX_INPUTS: Final = 2048
"""Inputs of one call, as OpenAI documents for embeddings."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """How much there is to read."""

    number: int
    tokens: int
    """Most tokens that all of them together may have."""


def measure(value: object, field: str) -> Inputs:
    """Measure an input, or a list of inputs.

    Raises:
        Refusal: 400.
    """
    if isinstance(value, str):
        return Inputs(1, _bytes(value))
    found = read.list_at(value, field)
    if _are_tokens(found):
        return Inputs(1, len(found))
    if len(found) > MAX_INPUTS:
        raise bad(field, f"it may have {MAX_INPUTS} inputs at most")
    return Inputs(len(found), sum(_one(item, field) for item in found))


def _one(item: object, field: str) -> int:
    if isinstance(item, str):
        return _bytes(item)
    if isinstance(item, list) and item and _are_tokens(item):
        return len(item)
    raise bad(field, "it must be text, tokens, or a list of texts or of lists of tokens")


def _are_tokens(items: list[object]) -> bool:
    return all(type(item) is int and item >= 0 for item in items)


def _bytes(text: str) -> int:
    return longest_form(read.serialise(text))
