"""A ceiling moves what stands above it, and nothing else."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.contract.config import ModelConfig, Prices
from llmbudget.decide.ladder import ceiling, default_ladder, lowered, weights_of

LADDER = ("claude-3-sonnet", "gpt-4o-mini", "phi-4-14b")
WEIGHTS = {
    "claude-3-sonnet": Decimal(24_000),
    "gpt-4o-mini": Decimal(2400),
    "phi-4-14b": Decimal(0),
    "dear": Decimal(90_000),
    "middling": Decimal(2400),
    "cheap": Decimal(10),
}


def model(name: str, base: int, out: int | None = None) -> ModelConfig:
    read, written = Decimal(base), Decimal(base if out is None else out)
    prices = Prices(
        input=read, output=written, cached_input=read, cache_write=read, reasoning=written
    )
    return unpriced(name).model_copy(update={"prices": prices})


def unpriced(name: str) -> ModelConfig:
    return ModelConfig(
        name=name,
        upstream_name=name,
        prices=None,
        max_context=1,
        max_output=1,
        default_max_output=1,
        latency_ms=1,
    )


@pytest.mark.parametrize(
    ("asked", "level", "expected"),
    [
        ("claude-3-sonnet", 0, "claude-3-sonnet"),
        ("claude-3-sonnet", 1, "gpt-4o-mini"),
        ("claude-3-sonnet", 2, "phi-4-14b"),
        ("claude-3-sonnet", 99, "phi-4-14b"),
        ("gpt-4o-mini", 1, "gpt-4o-mini"),
        ("phi-4-14b", 1, "phi-4-14b"),
        ("dear", 1, "gpt-4o-mini"),
        ("middling", 1, "middling"),
        ("cheap", 1, "cheap"),
        ("cheap", 2, "phi-4-14b"),
    ],
)
def test_a_call_goes_to_the_step_if_its_model_stands_above(
    asked: str, level: int, expected: str
) -> None:
    assert ceiling(asked, LADDER, level, WEIGHTS) == expected


def test_a_step_that_is_not_on_offer_gives_way_to_the_next_below() -> None:
    weights = {name: WEIGHTS[name] for name in ("claude-3-sonnet", "phi-4-14b")}
    assert ceiling("claude-3-sonnet", LADDER, 1, weights) == "phi-4-14b"


def test_no_step_below_leaves_no_model() -> None:
    weights = {"claude-3-sonnet": Decimal(1), "other": Decimal(0)}
    assert ceiling("claude-3-sonnet", LADDER, 1, weights) is None
    assert ceiling("other", LADDER, 1, weights) is None


def test_the_default_ladder_goes_from_dear_to_cheap() -> None:
    models = [model("b", 5), model("free", 0), model("a", 5), model("dear", 9), unpriced("?")]
    assert default_ladder(models) == ("dear", "a", "b", "free")


def test_a_model_of_several_providers_weighs_as_the_dearest() -> None:
    assert weights_of([model("m", 1), model("m", 3), model("m", 2)]) == {"m": Decimal(12)}


def test_every_account_of_the_path_applies_its_ceiling() -> None:
    child = ("gpt-4o-mini", "cheap", "phi-4-14b")
    assert lowered("dear", (LADDER, child), (0, 0), WEIGHTS) == "dear"
    assert lowered("dear", (LADDER, child), (1, 0), WEIGHTS) == "gpt-4o-mini"
    assert lowered("dear", (LADDER, child), (0, 1), WEIGHTS) == "cheap"
    assert lowered("dear", (LADDER, child), (2, 1), WEIGHTS) == "phi-4-14b"


def test_a_childs_ladder_never_lifts_a_call_over_its_parents_ceiling() -> None:
    upside_down = ("phi-4-14b", "claude-3-sonnet")
    assert lowered("dear", (LADDER, upside_down), (2, 1), WEIGHTS) is None


names = st.sampled_from([f"m{number}" for number in range(8)])
costs = st.dictionaries(names, st.integers(0, 100), min_size=1)


@given(costs, st.data())
def test_a_higher_level_never_costs_more(by_name: dict[str, int], data: st.DataObject) -> None:
    models = [model(name, price) for name, price in by_name.items()]
    weights, everything = weights_of(models), default_ladder(models)
    kept = data.draw(st.sets(st.sampled_from(everything), min_size=1))
    ladder = tuple(name for name in everything if name in kept)
    asked = data.draw(st.sampled_from(everything))
    results = [ceiling(asked, ladder, level, weights) for level in range(len(ladder) + 2)]
    reached = [weights[name] for name in results if name is not None]
    assert len(reached) == len(results)
    assert reached == sorted(reached, reverse=True)


@given(costs, st.lists(st.integers(0, 9), min_size=1, max_size=4), st.data())
def test_what_the_ceilings_leave_is_below_each_of_them(
    by_name: dict[str, int], levels: list[int], data: st.DataObject
) -> None:
    weights = weights_of([model(name, price) for name, price in by_name.items()])
    ladders = [data.draw(st.permutations(sorted(weights))) for _ in levels]
    found = lowered(data.draw(st.sampled_from(sorted(weights))), ladders, levels, weights)
    if found is not None:
        steps = [ceiling(found, *pair, weights) for pair in zip(ladders, levels, strict=True)]
        assert set(steps) == {found}
