"""Embeddings, moderations and text completions: inputs that are read each by itself."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.offers import offer

from llmbudget.decide.bounds import input_bound, upper_bound
from llmbudget.decide.cost import Usage
from llmbudget.gateway.protocols.completions import parse_completion
from llmbudget.gateway.protocols.embeddings import (
    embedding_usage,
    parse_embedding,
    parse_moderation,
)
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.inputs import MAX_INPUTS
from llmbudget.gateway.protocols.responses import response_usage
from llmbudget.gateway.protocols.sse import MAX_EVENT


def embedding(value: object, **fields: Any) -> bytes:
    return json.dumps({"model": "embed", "input": value} | fields).encode()


def completion(**fields: Any) -> bytes:
    return json.dumps({"model": "small", "prompt": "Once", "max_tokens": 5} | fields).encode()


@pytest.mark.parametrize(
    ("value", "number", "tokens"),
    [
        ("abc", 1, 5),
        (["abc", "de"], 2, 9),
        ([1, 2, 3], 1, 3),
        ([[1, 2], [3]], 2, 3),
        (["é"], 1, 5),
    ],
)
def test_inputs_are_measured(value: object, number: int, tokens: int) -> None:
    demand = parse_embedding(embedding(value)).demand
    assert (demand.contexts, demand.prompt_bytes, demand.choices) == (number, tokens, 0)


@pytest.mark.parametrize(
    "value", [None, "", [], [[]], [1, "a"], [-1], [1.5], {}, [[1], "a", []], ["a"] * 3000]
)
def test_what_is_no_input_is_refused(value: object) -> None:
    if value == "":
        assert parse_embedding(embedding(value)).demand.prompt_bytes == 2
        return
    with pytest.raises(Refusal) as refused:
        parse_embedding(embedding(value))
    assert refused.value.param == "input"


@given(st.integers(1, MAX_INPUTS), st.integers(1, 200_000))
def test_each_input_may_fill_a_context(number: int, size: int) -> None:
    demand = parse_embedding(embedding([[1] * 3] * number)).demand
    model = offer("embed").model
    assert 3 * number <= input_bound(demand, model) <= model.max_context * number
    prices = offer("embed").prices
    assert prices is not None
    assert upper_bound(demand, model, prices, size) == input_bound(demand, model)


def test_what_is_sent() -> None:
    request = parse_embedding(embedding("x", encoding_format="base64", dimensions=7))
    assert json.loads(request.write(offer("embed"), 1)) == {
        "model": "upstream/embed",
        "input": "x",
        "encoding_format": "base64",
        "dimensions": 7,
    }
    moderation = parse_moderation(embedding(["x", "y"]))
    assert json.loads(moderation.write(offer("mod"), 1)) == {
        "model": "upstream/mod",
        "input": ["x", "y"],
    }


@pytest.mark.parametrize("fields", [{"stream": True}, {"unheard_of": 1}])
def test_other_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        parse_embedding(embedding("x", **fields))
    with pytest.raises(Refusal):
        parse_moderation(embedding([{"type": "image_url", "image_url": {"url": "x"}}]))


def test_usage_without_completion_tokens() -> None:
    answer = json.dumps({"usage": {"prompt_tokens": 5, "total_tokens": 5}}).encode()
    assert embedding_usage(answer, 100) == Usage(5, 0)
    assert embedding_usage(b'{"id": "modr-1"}', 100) is None


def test_completions_ask_for_each_prompt() -> None:
    demand = parse_completion(completion(prompt=["a", "b", "c"], n=2)).demand
    assert (demand.contexts, demand.choices, demand.limit) == (3, 6, 5)
    request = parse_completion(completion(stream=True, temperature=0))
    assert json.loads(request.write(offer("small", host="api.openai.com"), 5)) == {
        "model": "upstream/small",
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "prompt": "Once",
        "temperature": 0,
    }


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"echo": True}, {"prompt": {}}, {"n": 0}])
def test_completions_that_cannot_be_bounded(fields: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        parse_completion(completion(**fields))


def test_free_embeddings_hold_nothing() -> None:
    free = offer("embed").prices
    assert free is not None
    nothing = free.model_copy(update={"input": Decimal(0), "output": Decimal(0)})
    zero = nothing.model_copy(
        update={"cached_input": Decimal(0), "cache_write": Decimal(0), "reasoning": Decimal(0)}
    )
    assert upper_bound(parse_embedding(embedding("x")).demand, offer("e").model, zero, 1) == 0


@pytest.mark.parametrize("count", [10, 200_000])
def test_of_a_large_answer_only_the_usage_is_read(count: int) -> None:
    vector = [0.123456] * count
    answer: dict[str, object] = {"data": [{"embedding": vector}]}
    answer |= {"usage": {"prompt_tokens": 77, "total_tokens": 77}}
    assert embedding_usage(json.dumps(answer).encode(), 100) == Usage(77, 0)
    del answer["usage"]
    small = json.dumps({"text": json.dumps({"usage": {"prompt_tokens": 5}}), "data": vector})
    assert embedding_usage(small.encode(), 100) is None


def test_of_a_large_answer_with_several_usages_none_is_believed() -> None:
    tool = {"properties": {"usage": {"input_tokens": 1, "output_tokens": 1}}}
    counts = {"input_tokens": 5000, "output_tokens": 9, "total_tokens": 5009}
    for size in (10, MAX_EVENT):
        answer = {"output": "x" * size, "usage": counts, "tools": [{"parameters": tool}]}
        found = response_usage(json.dumps(answer).encode(), 10_000)
        assert found == (Usage(5000, 9) if size < MAX_EVENT else None)
