"""Downgrades: which model a call may use as the money runs out.

A ladder lists models, dearest first. A level is a ceiling: a call whose model stands above the
ladder's step of that number goes to the step; all others go on as they are. A model that isn't on
the ladder is placed by its price.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final

from llmbudget.contract.config import ModelConfig, Prices

_INPUT_SHARE: Final = 3
"""Tokens read for each one written, as usual in chat: how two prices become one."""


def weight(prices: Prices) -> Decimal:
    """Tell how dear a model is, as one figure; only for comparing models."""
    return _INPUT_SHARE * prices.input + prices.output


def weights_of(models: Iterable[ModelConfig]) -> dict[str, Decimal]:
    """Weigh the models that are charged by tokens, by name; where several providers offer one, by
    the dearest."""
    weights: dict[str, Decimal] = {}
    for model in models:
        if model.prices is not None and model.prices.tokens:
            found = weight(model.prices)
            weights[model.name] = max(found, weights.get(model.name, found))
    return weights


def default_ladder(models: Iterable[ModelConfig]) -> tuple[str, ...]:
    """Order all priced models by price, dearest first, then by name."""
    weights = weights_of(models)
    return tuple(sorted(weights, key=lambda name: (-weights[name], name)))


def ceiling(
    model: str, ladder: Sequence[str], level: int, weights: Mapping[str, Decimal]
) -> str | None:
    """Find the model that a call for `model` goes to at a level; 0: no downgrade. A model without
    a name, which nobody knows, stands above all.

    Steps without a weight are not on offer here: the next one below counts in their place. A
    level beyond the ladder's end is its last step.

    Returns:
        The model's name; None where the ladder has no step left that is on offer.
    """
    if level <= 0 or not ladder:
        return model
    first = min(level, len(ladder) - 1)
    step = next((index for index in range(first, len(ladder)) if ladder[index] in weights), None)
    if model in ladder:
        stands_above = ladder.index(model) < (first if step is None else step)
    elif model and step is not None:
        stands_above = weights.get(model, Decimal(0)) > weights[ladder[step]]
    else:
        stands_above = True
    if not stands_above:
        return model
    return None if step is None else ladder[step]


def lowered(
    model: str,
    ladders: Sequence[Sequence[str]],
    levels: Sequence[int],
    weights: Mapping[str, Decimal],
) -> str | None:
    """Apply the ladders of a path, root first, until every ceiling holds.

    Returns:
        The model's name; None where the ceilings leave none, or contradict each other.
    """
    current: str | None = model
    seen: set[str] = set()
    while current is not None and current not in seen:
        seen.add(current)
        steps = (ceiling(current, *pair, weights) for pair in zip(ladders, levels, strict=True))
        below = next((step for step in steps if step != current), current)
        if below == current:
            return current
        current = below
    return None
