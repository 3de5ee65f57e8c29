"""No usage within the bound's tokens costs more than the bound."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.api.money import Nano
from llmbudget.contract.config import COUNTERPARTS, ModelConfig, Prices, Rates
from llmbudget.decide.bounds import (
    MESSAGE_OVERHEAD,
    REQUEST_OVERHEAD,
    SCHEMA_FACTOR,
    SCHEMA_OVERHEAD,
    Demand,
    Unbounded,
    affordable_limit,
    default_limit,
    expected_cost,
    fits,
    input_bound,
    longest_form,
    plausible_tokens,
    to_hold,
    upper_bound,
)
from llmbudget.decide.cost import MediaTokens, Units, Usage, cost
from llmbudget.decide.rates import by_length


def model(**fields: int) -> ModelConfig:
    sizes = {"max_context": 128_000, "max_output": 16_384, "default_max_output": 4096}
    return ModelConfig(
        name="m", upstream_name="m", prices=None, **(sizes | {"latency_ms": 1} | fields)
    )


KINDS = sorted(set(COUNTERPARTS) - {"cache_write_hour"})
rates = st.decimals("0", "100000", places=6, allow_nan=False, allow_infinity=False)
each_length = st.fixed_dictionaries(dict.fromkeys(Rates.model_fields, rates)).map(
    Rates.model_validate
)
all_prices = st.tuples(
    each_length, st.dictionaries(st.integers(1, 10**6), each_length, max_size=3)
).map(lambda found: by_length({0: found[0]} | dict(sorted(found[1].items()))))
demands = st.builds(
    Demand,
    prompt_bytes=st.integers(0, 10**6),
    messages=st.integers(1, 100),
    schema_bytes=st.integers(0, 10**5),
    choices=st.integers(1, 8),
    limit=st.none() | st.integers(1, 10**6),
    images=st.integers(0, 3),
    contexts=st.integers(1, 5),
    kinds=st.frozensets(st.sampled_from(KINDS)),
)
models = st.builds(
    lambda context, most, default, bound, image: model(
        max_context=context,
        max_output=most,
        default_max_output=default,
        context_bound=bound,
        image_tokens=image,
    ),
    st.integers(1, 10**6),
    st.integers(1, 10**5),
    st.integers(1, 10**5),
    st.none() | st.integers(1, 10**6),
    st.integers(1, 10**5),
)


@given(demands, models, all_prices, st.data())
def test_no_usage_within_the_bounds_costs_more_than_the_hold(
    demand: Demand, found: ModelConfig, prices: Prices, data: st.DataObject
) -> None:
    limit = default_limit(demand, found)
    tokens_in = data.draw(st.integers(0, input_bound(demand, found)))
    tokens_out = data.draw(st.integers(0, limit * demand.outputs))
    cached = data.draw(st.integers(0, tokens_in))
    cache_write = data.draw(st.integers(0, tokens_in - cached))
    reasoning = data.draw(st.integers(0, tokens_out))
    usage = Usage(tokens_in, tokens_out, cached, cache_write, reasoning)
    most = upper_bound(demand, found, prices, limit)
    assert cost(usage, prices, demand.kinds) <= most
    left = {"input": tokens_in - cached - cache_write, "cached_input": cached}
    left["output"] = tokens_out - reasoning
    media = dict.fromkeys(KINDS, 0)
    for kind in demand.kinds:
        text = COUNTERPARTS[kind]
        media[kind] = data.draw(st.integers(0, left[text]))
        left[text] -= media[kind]
    assert cost(replace(usage, media=MediaTokens(**media)), prices, demand.kinds) <= most


@given(demands, models, all_prices, st.integers(0, 10**13))
def test_the_affordable_limit_is_the_largest_that_the_balance_covers(
    demand: Demand, found: ModelConfig, prices: Prices, left: int
) -> None:
    remaining = Nano(left)
    wanted = default_limit(demand, found)
    limit = affordable_limit(demand, found, prices, remaining)
    if limit is None:
        least = wanted if demand.limit else 1
        assert upper_bound(demand, found, prices, least) > remaining
        return
    assert 1 <= limit <= wanted
    assert upper_bound(demand, found, prices, limit) <= remaining
    if limit < wanted:
        assert demand.limit is None
        assert upper_bound(demand, found, prices, limit + 1) > remaining


@given(demands, models, all_prices, st.none() | st.integers(0, 10**13))
def test_what_is_held_is_affordable_or_the_ledger_is_asked_for_the_default(
    demand: Demand, found: ModelConfig, prices: Prices, left: int | None
) -> None:
    remaining = None if left is None else Nano(left)
    limit, amount = to_hold(demand, found, prices, remaining)
    affordable = affordable_limit(demand, found, prices, remaining)
    assert limit == (affordable or default_limit(demand, found))
    assert amount == upper_bound(demand, found, prices, limit)


ONE = Prices(**dict.fromkeys(Rates.model_fields, Decimal(1)))


def test_what_only_the_provider_can_measure_is_a_whole_context() -> None:
    asked = Demand(prompt_bytes=10, messages=1, opaque="previous_response_id")
    assert input_bound(asked, model(context_bound=128_000)) == 128_000
    with pytest.raises(Unbounded, match=r"previous_response_id makes m read .* set its maxContext"):
        input_bound(asked, model())


@given(all_prices, all_prices, st.sampled_from([(), ("",), ("flex",), ("", "flex")]))
def test_a_service_tier_is_held_at_the_dearer_of_both(
    prices: Prices, flex: Prices, services: tuple[str, ...]
) -> None:
    tiered = prices.model_copy(update={"services": {"flex": flex}})
    asked = Demand(100, 1, limit=50, service="flex")
    usage = Usage(input_bound(asked, model()), 50, services=services)
    assert cost(usage, tiered, asked.kinds) <= upper_bound(asked, model(), tiered, 50)


def test_what_runs_tools_reads_and_writes_anew_each_round() -> None:
    found = model(context_bound=1000)
    asked = Demand(10, 1, limit=50, opaque="tools", rounds=3, units=Units(searches=2))
    assert input_bound(asked, found) == 3000
    dear = ONE.model_copy(update={"search": Decimal(7)})
    assert upper_bound(asked, found, dear, 50) == 3000 + 3 * 50 + 2 * 7


@given(all_prices, st.integers(1, 5), st.integers(0, 10**13))
def test_searches_leave_less_for_the_output(prices: Prices, searches: int, left: int) -> None:
    found = model(context_bound=1000)
    dear = prices.model_copy(update={"search": Decimal("12345.678")})
    asked = Demand(10, 1, opaque="tools", rounds=3, units=Units(searches=searches))
    limit, remaining = affordable_limit(asked, found, dear, Nano(left)), Nano(left)
    if limit is None:
        assert upper_bound(asked, found, dear, 1) > remaining
        return
    assert upper_bound(asked, found, dear, limit) <= remaining
    if limit < default_limit(asked, found):
        assert upper_bound(asked, found, dear, limit + 1) > remaining


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Demand(10, 1, stored="store"), "Field store is refused.*storedResponses"),
        (Demand(10, 1, service="flex"), "Field service_tier is refused.*serviceTiers"),
        (Demand(10, 1, file="messages[0]"), r"Field messages\[0\] is refused.*hosted.files"),
        (Demand(10, 1, units=Units(searches=1)), "Field tools is refused.*webSearchPer1K"),
    ],
)
def test_what_the_provider_may_not_do_is_refused_by_its_field(asked: Demand, says: str) -> None:
    with pytest.raises(Unbounded, match=says):
        upper_bound(asked, model(), ONE, 1)


@pytest.mark.parametrize(
    ("name", "upstream_name"),
    [
        ("m", "gpt-4o-mini-2024-07-18"),
        ("m", "azure/gpt-4o-mini"),
        ("m", "ft:gpt-4o-mini-2024-07-18:org::x"),
        ("gpt-4.1-mini", "a-deployment"),
    ],
)
def test_a_model_with_a_block_of_tokens_for_each_search_may_not_search(
    name: str, upstream_name: str
) -> None:
    dear = ONE.model_copy(update={"search": Decimal(7)})
    found = model().model_copy(update={"name": name, "upstream_name": upstream_name})
    with pytest.raises(Unbounded, match=f"Field tools is refused: {name} is charged a block"):
        upper_bound(Demand(10, 1, units=Units(searches=1)), found, dear, 1)


def test_without_a_cap_the_default_limit_holds() -> None:
    dear = Prices(**dict.fromkeys(Rates.model_fields, Decimal(10**9)))
    assert affordable_limit(Demand(10, 1), model(), dear, None) == 4096


def test_free_calls_fit_an_empty_balance() -> None:
    free = Prices(**dict.fromkeys(Rates.model_fields, Decimal(0)))
    assert affordable_limit(Demand(10, 1), model(), free, Nano(0)) == 4096


def test_input_counts_bytes_and_what_the_provider_adds() -> None:
    demand = Demand(prompt_bytes=100, messages=2, schema_bytes=50)
    added = REQUEST_OVERHEAD + 2 * MESSAGE_OVERHEAD + SCHEMA_OVERHEAD + SCHEMA_FACTOR * 50
    assert input_bound(demand, model()) == 100 + added


def test_input_is_bounded_by_a_context_that_someone_has_said() -> None:
    assert input_bound(Demand(10**9, 1), model(context_bound=128_000)) == 128_000
    assert input_bound(Demand(10**9, 1, contexts=3), model(context_bound=128_000)) == 384_000
    assert input_bound(Demand(10**9, 1), model()) > 10**9
    assert input_bound(Demand(0, 0, contexts=0), model()) == 0


def test_images_count_as_documented_or_as_a_context_or_not_at_all() -> None:
    demand = Demand(0, 0, images=2)
    assert input_bound(demand, model(image_tokens=1000)) == REQUEST_OVERHEAD + 2000
    assert input_bound(demand, model(context_bound=5000)) == 5000
    with pytest.raises(Unbounded):
        input_bound(demand, model())


@given(st.text())
def test_the_longest_form_bounds_every_form(text: str) -> None:
    bound = longest_form(text.encode())
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert len(normalize(form, text).encode()) <= bound


def test_combining_marks_take_no_time() -> None:
    assert longest_form(("a" + "\u0301\u0316" * 500_000).encode()) == 2_000_001


@pytest.mark.parametrize(
    ("limit", "fields", "expected"),
    [
        (None, {}, 4096),
        (None, {"max_output": 1000}, 1000),
        (7, {}, 7),
        (100_000, {"max_output": 1000}, 100_000),
    ],
    ids=["default", "the model's maximum", "the caller's", "never lowered"],
)
def test_the_output_limit(limit: int | None, fields: dict[str, int], expected: int) -> None:
    assert default_limit(Demand(1, 1, limit=limit), model(**fields)) == expected


def test_fitting_counts_prompt_and_answer() -> None:
    assert fits(Demand(3000, 1, limit=1000), model(max_context=2000))
    assert not fits(Demand(3003, 1, limit=1000), model(max_context=2000))


def test_the_expected_cost_compares_by_what_a_call_reads_and_writes() -> None:
    reads = Prices(**dict.fromkeys(Rates.model_fields, Decimal(1)) | {"input": Decimal(10)})
    writes = Prices(**dict.fromkeys(Rates.model_fields, Decimal(1)) | {"output": Decimal(10)})
    long, short = Demand(30_000, 1, limit=10), Demand(30, 1, limit=10_000)
    assert expected_cost(long, model(), reads) > expected_cost(long, model(), writes)
    assert expected_cost(short, model(), reads) < expected_cost(short, model(), writes)


@given(demands, models)
def test_whatever_the_bounds_allow_is_plausible(demand: Demand, found: ModelConfig) -> None:
    limit = default_limit(demand, found)
    plausible = plausible_tokens(demand, found, limit)
    assert plausible >= input_bound(demand, found) + limit * demand.choices


def test_a_context_that_is_said_to_be_too_short_makes_no_true_usage_garbage() -> None:
    found = model(max_context=4000, context_bound=4000)
    asked = Demand(prompt_bytes=400_000, messages=1, limit=16)
    assert input_bound(asked, found) == 4000
    assert plausible_tokens(asked, found, 16) > 80_010


@pytest.mark.parametrize("field", ["name", "upstream_name"])
def test_what_a_provider_hides_before_a_prompt_is_held_for(field: str) -> None:
    grok = model().model_copy(update={field: "x-ai/Grok-4"})
    hello = Demand(prompt_bytes=40, messages=1, limit=16)
    assert input_bound(hello, grok) - input_bound(hello, model()) == 2048
    several = replace(hello, contexts=3)
    assert input_bound(several, grok) - input_bound(several, model()) == 3 * 2048


@pytest.mark.parametrize("kind", ["input_audio", "output_audio"])
def test_sound_without_a_price_is_refused(kind: str) -> None:
    text = by_length({0: Rates(**dict.fromkeys(list(Rates.model_fields)[:5], Decimal(1)))})
    unpriced = text.model_copy(update={"unpriced": (kind,)})
    asked = Demand(prompt_bytes=4, messages=1, limit=1, kinds=frozenset({kind}))
    found = model(context_bound=1000)
    assert upper_bound(asked, found, text, 1)
    with pytest.raises(Unbounded, match="What sound costs m is not known"):
        upper_bound(asked, found, unpriced, 1)
    assert upper_bound(replace(asked, kinds=frozenset()), found, unpriced, 1)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_longest_form_covers_what_tokenisers_convert_to(text: str) -> None:
    counted = longest_form(text.encode())
    for form in (text, normalize("NFC", text), normalize("NFKC", text)):
        assert counted >= len(form.encode())


def test_a_character_that_grows_is_counted_as_it_will_be() -> None:
    assert longest_form(b"abc") == 3
    assert longest_form("\N{MUSICAL SYMBOL EIGHTH NOTE}".encode()) == 12
    assert longest_form("\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}".encode()) == 33
