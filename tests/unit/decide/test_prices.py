"""Costs are exact and rounded up once; list prices are the dearest that may apply."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil

import pytest
from genai_prices import Usage as Used
from genai_prices import data_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.api.costs import Cost, CostTier, ServiceTierCost
from llmbudget.api.provider import Hosted, Protocol, ProviderModel, ProviderSpec
from llmbudget.contract.config import ImagePrice, Prices
from llmbudget.contract.config import Tier as PriceTier
from llmbudget.decide.bounds import Demand, dearest_input, dearest_output
from llmbudget.decide.cost import MediaTokens, Units, Usage, cost, told
from llmbudget.decide.list_prices import list_prices
from llmbudget.decide.prices import resolve_prices

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ENDPOINT = "https://models.example/v1"
ENDPOINTS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "google": "https://generativelanguage.googleapis.com/v1beta/openai",
    "openrouter": "https://openrouter.ai/api/v1",
    "x-ai": "https://api.x.ai/v1",
}


def prices(base: str = "150", out: str = "600", **rates: str) -> Prices:
    given = {name: Decimal(rate) for name, rate in rates.items()}
    defaults = {"cached_input": base, "cache_write": base, "reasoning": out}
    rated = {name: Decimal(rate) for name, rate in defaults.items()} | given
    return Prices(input=Decimal(base), output=Decimal(out), **rated)


def at(endpoint: str, protocol: Protocol = Protocol.OPENAI) -> ProviderSpec:
    secret = {"secretKeyRef": {"name": "keys", "key": "KEY"}}
    models = [{"name": "any"}]
    return ProviderSpec.model_validate(
        {"protocol": protocol, "endpoint": endpoint, "credentials": secret, "models": models}
    )


def test_the_cost_is_tokens_times_price() -> None:
    assert cost(Usage(tokens_in=1000, tokens_out=100), prices()) == 150_000 + 60_000


def test_each_kind_of_token_has_its_own_price() -> None:
    usage = Usage(tokens_in=1000, tokens_out=100, cached=300, cache_write=200, reasoning=40)
    rated = prices("10", "100", cached_input="1", cache_write="20", reasoning="200")
    assert cost(usage, rated) == 500 * 10 + 300 * 1 + 200 * 20 + 60 * 100 + 40 * 200


def test_a_cost_is_rounded_up_once_and_not_for_each_part() -> None:
    rated = prices("0.3", "0.3")
    assert cost(Usage(1, 1), rated) == 1
    assert cost(Usage(2, 2), rated) == 2
    assert cost(Usage(0, 0), rated) == 0


amounts = st.decimals("0", "1000000", places=6, allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**40)


@given(counts, counts, amounts, amounts)
def test_the_cost_is_exact_however_large(read: int, written: int, a: Decimal, b: Decimal) -> None:
    exact = read * Fraction(a) + written * Fraction(b)
    assert cost(Usage(read, written), prices(str(a), str(b))) == ceil(exact)


def test_sound_and_images_have_prices_of_their_own() -> None:
    rated = prices("10", "100", cached_input="1", input_audio="40", cached_audio="4")
    rated = rated.model_copy(update={"output_audio": Decimal(300), "input_image": Decimal(20)})
    media = MediaTokens(10, 5, 7, input_image=3, cached_image=2, output_image=1)
    usage = Usage(tokens_in=100, tokens_out=50, cached=20, media=media)
    read = (80 - 13) * 10 + 10 * 40 + 3 * 20 + (20 - 7) * 1 + 5 * 4 + 2 * 1
    assert cost(usage, rated) == read + (50 - 7) * 100 + 7 * 300


def test_kinds_that_nobody_tells_apart_are_charged_the_dearest() -> None:
    rated = prices("10", "100", input_audio="40", input_image="20", output_image="50")
    usage, sound = Usage(100, 50), frozenset({"input_audio", "cached_audio", "input_image"})
    assert cost(usage, rated) == 100 * 10 + 50 * 100
    assert cost(usage, rated, sound) == 100 * 40 + 50 * 100
    assert cost(usage, rated, frozenset({"output_image"})) == cost(usage, rated)


@given(st.integers(0, 10**7), st.integers(0, 4096), st.integers(0, 10), amounts, amounts, amounts)
def test_units_are_counted_exactly_and_rounded_up_once(
    milliseconds: int, characters: int, images: int, a: Decimal, b: Decimal, c: Decimal
) -> None:
    nothing = prices("0", "0")
    rated = nothing.model_copy(
        update={"minute": a, "character": b, "images": (ImagePrice(price=c),)}
    )
    exact = milliseconds * Fraction(a) / 60_000 + characters * Fraction(b) + images * Fraction(c)
    units = Units(milliseconds=milliseconds, characters=characters, images=images)
    assert cost(Usage(0, 0, units=units), rated) == ceil(exact)


def test_other_units_are_priced_by_the_resource_or_the_list() -> None:
    written = Cost.model_validate(
        {
            **{"perMinute": "0.006", "per1KCharacters": "0.015"},
            "perImage": [{"price": "0.04"}, {"price": "0.08", "quality": "hd"}],
        }
    )
    found = resolve_prices(ProviderModel(name="m", cost=written), at(ENDPOINT), NOW)
    assert found is not None
    assert (found.tokens, found.minute, found.character) == (False, 6_000_000, 15_000)
    assert [image.price for image in found.images] == [40_000_000, 80_000_000]
    assert not found.free
    listed = [list_prices(ENDPOINTS["openai"], name, NOW) for name in ("whisper-1", "tts-1")]
    assert [each.minute for each in listed if each] == [6_000_000, None]
    assert [each.character for each in listed if each] == [None, 15_000]
    embeds = list_prices(ENDPOINTS["openai"], "text-embedding-3-small", NOW)
    assert embeds is not None
    assert embeds.input == 20
    image = list_prices(ENDPOINTS["openai"], "gpt-image-1-mini", NOW)
    assert image is not None
    assert (image.input_image, image.cached_image, image.output_image) == (2500, 250, None)


def test_prices_of_the_resource_come_before_list_prices() -> None:
    model = ProviderModel(
        name="gpt-4o-mini", cost=Cost(input_per_1k="0.0006", output_per_1k="0.0012")
    )
    found = resolve_prices(model, at("https://api.openai.com/v1"), NOW)
    assert found == prices("600", "1200")


def test_a_search_has_the_price_that_its_provider_names() -> None:
    named = at(ENDPOINTS["anthropic"], Protocol.ANTHROPIC)
    listed = ProviderModel(name="claude-sonnet-4-5")
    written = ProviderModel(name="any", cost=Cost(inputPer1K="0", outputPer1K="0"))
    for model in (listed, written):
        found = resolve_prices(model, named, NOW)
        assert found is not None
        assert found.search is None
    priced = named.model_copy(update={"hosted": Hosted(webSearchPer1K="10")})
    for model in (listed, written):
        found = resolve_prices(model, priced, NOW)
        assert found is not None
        assert found.search == 10 * 10**6
    assert found.free, "a call without a search costs nothing"
    searched = Usage(0, 0, units=Units(searches=3))
    assert cost(searched, found) == 30 * 10**6
    assert resolve_prices(ProviderModel(name="unheard-of"), priced, NOW) is None


@pytest.mark.parametrize(
    "name",
    ["gpt-4o-search-preview", "gpt-5-search-api", "o3-deep-research", "perplexity/sonar-pro"],
)
def test_a_model_that_searches_by_itself_has_no_price(name: str) -> None:
    written = Cost(inputPer1K="0.0025", outputPer1K="0.01")
    for model in (
        ProviderModel(name=name, cost=written),
        ProviderModel(name="a", upstream_name=name, cost=written),
        ProviderModel(name=name, upstream_name="a-deployment", cost=written),
    ):
        assert resolve_prices(model, at(ENDPOINTS["openai"]), NOW) is None
    for other in ("research-assistant", "job-search", "resonar"):
        assert resolve_prices(ProviderModel(name=other, cost=written), at(ENDPOINT), NOW)


@pytest.mark.parametrize("name", ["claude-opus-4-6", "claude-sonnet-5", "claude-haiku-4-5"])
def test_a_model_is_held_and_charged_at_the_price_of_the_place_where_it_runs(name: str) -> None:
    long = CostTier(above=200_000, inputPer1K="0.006", outputPer1K="0.0225")
    written = Cost(inputPer1K="0.003", outputPer1K="0.015", longContext=[long])
    model = ProviderModel(name=name, cost=written)
    found = resolve_prices(model, at(ENDPOINTS["anthropic"], Protocol.ANTHROPIC), NOW)
    assert found is not None
    chosen = not name.endswith("4-5")
    for read, usual in ((1000, 1000 * 3000 + 15_000), (200_001, 200_001 * 6000 + 22_500)):
        usage = Usage(read, 1)
        there = replace(usage, services=("us",))
        assert cost(usage, found) == usual
        assert told(there, found) is chosen
        assert not told(replace(usage, services=("eu",)), found)
        if chosen:
            assert 10 * cost(there, found) == 11 * usual
    assert found.input == (6600 if chosen else 6000)
    assert found.output == (24_750 if chosen else 22_500)


def test_what_the_resource_leaves_out_costs_as_its_base_rate() -> None:
    written = Cost(
        input_per_1k="0.003",
        output_per_1k="0.015",
        cached_input_per_1k="0.0003",
        cache_write_per_1k="0.00375",
        reasoning_per_1k="0.02",
    )
    found = resolve_prices(ProviderModel(name="m", cost=written), at(ENDPOINT), NOW)
    expected = prices("3000", "15000", cached_input="300", cache_write="3750", reasoning="20000")
    assert found == expected


def test_anthropic_charges_more_for_what_is_written_to_a_cache() -> None:
    model = ProviderModel(name="m", cost=Cost(input_per_1k="0.003", output_per_1k="0.015"))
    found = resolve_prices(model, at(ENDPOINT, Protocol.ANTHROPIC), NOW)
    assert found == prices("3000", "15000", cache_write="3750", cache_write_hour="6000")
    usage = Usage(100, 0, cached=10, cache_write=50, cache_write_hour=20)
    assert cost(usage, found) == 40 * 3000 + 10 * 3000 + 30 * 3750 + 20 * 6000


def test_list_prices_are_found_by_endpoint_and_upstream_name() -> None:
    model = ProviderModel(name="small", upstream_name="openai/gpt-4o-mini")
    found = resolve_prices(model, at("https://openrouter.ai/api/v1"), NOW)
    assert found is not None
    assert found.input > 0
    assert found.output >= found.input


def test_all_list_prices_are_exact_decimals() -> None:
    for provider in data_snapshot.get_snapshot().providers:
        for model in provider.models:
            tables = model.prices if isinstance(model.prices, list) else [model.prices]
            for table in tables:
                table = table.prices if isinstance(table, ConditionalPrice) else table
                for rate in vars(table).values():
                    steps = (
                        [rate.base, *(tier.price for tier in rate.tiers)]
                        if isinstance(rate, TieredPrices)
                        else [rate]
                    )
                    assert {type(step) for step in steps} <= {Decimal, type(None)}


@pytest.mark.parametrize(
    ("endpoint", "model"),
    [
        ("http://localai.llm:8080/v1", "phi-4-14b"),
        ("https://api.openai.com/v1", "no-such-model-anywhere"),
        ("https://api.perplexity.ai", "sonar"),
        ("https://api.openai.com/v1", "o3-deep-research"),
        ("https://api.openai.com/v1", "gpt-4o-mini-search-preview"),
        ("https://api.openai.com/v1", "gpt-realtime-whisper"),
        ("https://api.groq.com/openai/v1", "whisper-large-v3"),
        ("https://openrouter.ai/api/v1", "openai/gpt-4o:online"),
    ],
)
def test_what_cannot_be_priced_has_no_price(endpoint: str, model: str) -> None:
    assert list_prices(endpoint, model, NOW) is None


def test_what_a_list_does_not_say_of_sound_and_images_is_no_price_of_text() -> None:
    def listed_at(provider: str, model: str) -> tuple[str, ...] | None:
        found = list_prices(ENDPOINTS[provider], model, NOW)
        return None if found is None else found.unpriced

    assert listed_at("openrouter", "openai/gpt-audio") == ("input_audio", "output_audio")
    assert listed_at("openai", "gpt-audio") == ()
    assert listed_at("openai", "gpt-4o-transcribe") == ("output_audio",)
    assert listed_at("openai", "gpt-4o-mini-tts") == ("input_audio",)
    assert listed_at("google", "gemini-3-pro-image-preview") is not None
    assert listed_at("openrouter", "google/gemini-3-pro-image-preview") is None
    assert listed_at("openai", "gpt-5-image") is None
    for drawing in ("gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5"):
        assert listed_at("openai", drawing) is not None
    written = Cost(inputPer1K="0.1", outputPer1K="0.2")
    for name in ("google/gemini-3-pro-image-preview", "openai/gpt-audio"):
        model = ProviderModel(name=name, cost=written)
        found = resolve_prices(model, at(ENDPOINTS["openrouter"]), NOW)
        assert found is not None
        assert found.unpriced == ()


@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_what_azure_charges_is_never_taken_from_a_list(version: str | None) -> None:
    host = "team-a.openai.azure.com" if version is None else "azure.gateway.example"
    azure = at(f"https://{host}").model_copy(update={"api_version": version})
    model = ProviderModel(name="gpt-4o")
    assert resolve_prices(model, azure, NOW) is None
    written = model.model_copy(update={"cost": Cost(inputPer1K="0.1", outputPer1K="0.2")})
    assert resolve_prices(written, azure, NOW) is not None


def listed_models(provider: str) -> list[ModelInfo]:
    found = data_snapshot.get_snapshot().providers
    return next(each.models for each in found if each.id == provider)


@pytest.fixture
def listed(request: pytest.FixtureRequest):
    """Put a list of one model in the place of the package's."""
    model = ModelInfo(id="m", match=ClauseEquals(equals="m"), prices=request.param)
    provider = Provider(id="p", name="P", api_pattern="https://models\\.example", models=[model])
    data_snapshot.set_custom_snapshot(
        data_snapshot.DataSnapshot(providers=[provider], from_auto_update=False)
    )
    found = list_prices(ENDPOINT, "m", NOW)
    # What is unpriced has a test of its own.
    yield found and found.model_copy(update={"unpriced": ()})
    data_snapshot.set_custom_snapshot(None)


def at_length(above: int, rated: Prices) -> PriceTier:
    return PriceTier(above=above, **rated.model_dump(exclude={"tiers"}))


def table(base: str, out: str = "10", **rates: str) -> ModelPrice:
    given = {f"{name}_mtok": Decimal(rate) for name, rate in rates.items()}
    return ModelPrice(input_mtok=Decimal(base), output_mtok=Decimal(out), **given)


TIERED = ModelPrice(
    input_mtok=TieredPrices(base=Decimal(2), tiers=[Tier(start=200_000, price=Decimal(4))]),
    output_mtok=TieredPrices(
        base=Decimal(10),
        tiers=[Tier(start=400_000, price=Decimal(9)), Tier(start=200_000, price=Decimal(15))],
    ),
    cache_read_mtok=Decimal(1),
)
DATED = [
    ConditionalPrice(prices=table("9")),
    ConditionalPrice(
        prices=table("3"), constraint=StartDateConstraint(start_date=date(2026, 1, 1))
    ),
    ConditionalPrice(
        prices=table("1"), constraint=StartDateConstraint(start_date=date(2027, 1, 1))
    ),
]
HOURLY = [
    ConditionalPrice(prices=table("2")),
    ConditionalPrice(
        prices=table("1"),
        constraint=TimeOfDateConstraint(
            start_time=datetime(2026, 1, 1, 11, tzinfo=UTC).timetz(),
            end_time=datetime(2026, 1, 1, 13, tzinfo=UTC).timetz(),
        ),
    ),
]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        pytest.param(table("2"), prices("2000", "10000"), id="flat"),
        pytest.param(DATED, prices("3000", "10000"), id="in force today"),
        pytest.param(HOURLY, prices("2000", "10000"), id="the dearest hour"),
        pytest.param(
            table("2", cache_read="1", cache_write="3", cache_write_1h="4", output_reasoning="11"),
            prices(
                "2000",
                "10000",
                cached_input="1000",
                cache_write="3000",
                cache_write_hour="4000",
                reasoning="11000",
            ),
            id="each kind of cache write",
        ),
        pytest.param(
            ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1), requests_kcount=Decimal(5)),
            None,
            id="charged by request",
        ),
        pytest.param(ModelPrice(input_mtok=Decimal(1)), None, id="no output price"),
    ],
    indirect=["listed"],
)
def test_list_prices_are_the_dearest_in_force(
    listed: Prices | None, expected: Prices | None
) -> None:
    assert listed == expected


@pytest.mark.parametrize("listed", [TIERED], indirect=True)
def test_a_long_input_is_held_at_the_dearest_price_and_charged_at_its_own(listed: Prices) -> None:
    tiers = (
        at_length(0, prices("2000", "10000", cached_input="1000")),
        at_length(200_000, prices("4000", "15000", cached_input="1000")),
        at_length(400_000, prices("4000", "9000", cached_input="1000")),
    )
    dearest = prices("4000", "15000", cached_input="1000")
    assert listed == dearest.model_copy(update={"tiers": tiers})
    assert cost(Usage(0, 10), listed) == 10 * 10_000
    assert cost(Usage(200_000, 10), listed) == 200_000 * 2000 + 10 * 10_000
    assert cost(Usage(200_001, 10, cached=1), listed) == 200_000 * 4000 + 1000 + 10 * 15_000
    assert cost(Usage(400_001, 10), listed) == 400_001 * 4000 + 10 * 9000


@pytest.mark.parametrize("listed", [[ConditionalPrice(prices=TIERED), HOURLY[1]]], indirect=True)
def test_tiers_of_some_hours_stand_beside_those_of_the_day(listed: Prices) -> None:
    assert [tier.above for tier in listed.tiers] == [0, 200_000, 400_000]
    # The hour has no price for the cache: the day's is the dearest that is known.
    assert listed.charged(1) == at_length(0, prices("2000", "10000", cached_input="1000"))


@pytest.mark.parametrize("provider", ENDPOINTS)
def test_lengths_are_charged_as_the_package_charges_them(provider: str) -> None:
    checked = 0
    for model in listed_models(provider):
        table = model.prices
        if not isinstance(table, ModelPrice):
            continue
        starts = {t.start for p in vars(table).values() for t in getattr(p, "tiers", ())}
        found = list_prices(ENDPOINTS[provider], model.id, NOW) if starts else None
        if found is None:
            continue
        for read in (1, *starts, *(start + 1 for start in starts)):
            theirs = table.calc_price(Used(input_tokens=read, output_tokens=7))
            exact = Fraction(theirs["total_price"]) * 10**9
            assert cost(Usage(read, 7), found) == ceil(exact), (model.id, read)
            checked += 1
    assert checked


def test_a_service_tier_is_charged_its_own_rates_and_in_doubt_the_dearest() -> None:
    flex, priority = (
        ServiceTierCost(name=name, inputPer1K=each, outputPer1K=each)
        for name, each in (("flex", "0.1"), ("priority", "0.4"))
    )
    base = Cost(inputPer1K="0.2", outputPer1K="0.2", serviceTiers=[flex, priority])
    found = resolve_prices(ProviderModel(name="any", cost=base), at(ENDPOINT), NOW)
    assert found is not None
    assert not found.free
    for services, each in (
        *(((), 200_000), (("",), 200_000), (("flex",), 100_000), (("priority",), 400_000)),
        *((("", "flex"), 200_000), (("", "priority"), 400_000)),
    ):
        assert cost(Usage(10, 5, services=services), found) == 15 * each


@pytest.mark.parametrize(
    ("own", "charged"),
    [
        pytest.param([], 300_000 * 5000 + 1000 * 22_500, id="the dearer"),
        pytest.param([("0.0025", "0.01125")], 300_000 * 2500 + 1000 * 11_250, id="its own"),
    ],
)
def test_a_long_input_in_a_service_tier_has_prices_of_its_length(
    own: list[tuple[str, str]], charged: int
) -> None:
    flex = ServiceTierCost(
        name="flex",
        inputPer1K="0.00125",
        outputPer1K="0.0075",
        longContext=[CostTier(above=272_000, inputPer1K=a, outputPer1K=b) for a, b in own],
    )
    long = CostTier(above=272_000, inputPer1K="0.005", outputPer1K="0.0225")
    written = Cost(
        inputPer1K="0.0025", outputPer1K="0.015", longContext=[long], serviceTiers=[flex]
    )
    found = resolve_prices(ProviderModel(name="m", cost=written), at(ENDPOINT), NOW)
    assert found is not None
    usage = Usage(272_000, 1000, services=("flex",))
    assert cost(usage, found) == 272_000 * 1250 + 1000 * 7500
    assert cost(replace(usage, tokens_in=300_000), found) == charged
    demand = Demand(prompt_bytes=0, messages=0, service="flex")
    held = 300_000 * dearest_input(demand, found) + 1000 * dearest_output(demand, found)
    assert held >= charged
    read_again = Prices.model_validate_json(found.model_dump_json(by_alias=True))
    assert cost(replace(usage, tokens_in=300_000), read_again) == charged


def test_no_service_tier_has_a_list_price() -> None:
    """That is why `service_tier: flex` and its like need a price of the resource."""
    found = listed_models("openai")
    flat = [model.prices for model in found if isinstance(model.prices, ModelPrice)]
    names = [model.id for model in found] + [key for table in flat for key in vars(table)]
    assert not [name for name in names if re.search("flex|batch|priority", name)]


def test_prices_of_the_resource_may_have_lengths_of_their_own() -> None:
    longer = CostTier(above=200_000, input_per_1k="0.006", output_per_1k="0.0225")
    longest = CostTier(above=900_000, input_per_1k="0.007", output_per_1k="0.02")
    written = Cost(input_per_1k="0.003", output_per_1k="0.015", long_context=[longest, longer])
    found = resolve_prices(ProviderModel(name="m", cost=written), at(ENDPOINT), NOW)
    assert found is not None
    assert [tier.above for tier in found.tiers] == [0, 200_000, 900_000]
    assert found == prices("7000", "22500").model_copy(update={"tiers": found.tiers})
    assert cost(Usage(200_000, 1), found) == 200_000 * 3000 + 15_000
    assert cost(Usage(200_001, 1), found) == 200_001 * 6000 + 22_500
    assert cost(Usage(900_001, 1), found) == 900_001 * 7000 + 20_000
