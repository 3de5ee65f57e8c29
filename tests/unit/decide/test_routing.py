"""Calls go where their budget, their ceiling and their protocol let them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from llmbudget.api.budget import Strategy
from llmbudget.api.credentials import KeyHeader
from llmbudget.api.provider import Protocol
from llmbudget.contract.config import (
    AccountConfig,
    GatewayConfig,
    ModelConfig,
    Prices,
    ProviderConfig,
)
from llmbudget.decide.bounds import Demand
from llmbudget.decide.catalogue import Catalogue, catalogues
from llmbudget.decide.routing import NoRoute, Reason, allowed_models, free_route, route

SHORT = Demand(prompt_bytes=300, messages=1)


def model(name: str, price: int | None, **fields: int) -> ModelConfig:
    rate = Decimal(price or 0)
    prices = Prices(input=rate, output=rate, cached_input=rate, cache_write=rate, reasoning=rate)
    sizes = {"max_context": 128_000, "max_output": 16_384, "default_max_output": 4096}
    return ModelConfig(
        name=name,
        upstream_name=name,
        prices=None if price is None else prices,
        **(sizes | {"latency_ms": 500} | fields),
    )


def provider(
    name: str, *models: ModelConfig, protocol: Protocol = Protocol.OPENAI
) -> ProviderConfig:
    return ProviderConfig(
        name=name,
        protocol=protocol,
        endpoint=f"https://{name}.example/v1",
        allow_private=False,
        key_header=KeyHeader.AUTHORIZATION,
        models=models,
        connect_timeout_ms=1,
        idle_timeout_ms=1,
        total_timeout_ms=1,
        bills_errors=False,
    )


def account(name: str = "llm/root", **fields: object) -> AccountConfig:
    defaults: dict[str, object] = {"cap_nano": 1, "providers": ()}
    return AccountConfig.model_validate(defaults | {"name": name} | fields)


def build(providers: list[ProviderConfig], *accounts: AccountConfig) -> dict[str, Catalogue]:
    names = tuple(provider.name for provider in providers)
    root = accounts[0].model_copy(update={"providers": accounts[0].providers or names})
    return catalogues(
        GatewayConfig(
            generation=1,
            root=root.name,
            operator="llmbudget-system/llmbudget-operator",
            accounts=(root, *accounts[1:]),
            providers=tuple(providers),
            endpoints=(),
        )
    )


OPENROUTER = "openrouter/gpt-4o-mini"
REQUESTY = "requesty/claude-3-sonnet"
LOCALAI = "localai/phi-4-14b"
GUIDE = [
    provider("openrouter", model("gpt-4o-mini", 600, latency_ms=500)),
    provider("requesty", model("claude-3-sonnet", 9000, latency_ms=800, max_context=200_000)),
    provider("localai", model("phi-4-14b", 0, latency_ms=200, max_context=32_000)),
]


def guide(**fields: object) -> Catalogue:
    return build(GUIDE, account(**fields))["llm/root"]


def chosen(
    catalogue: Catalogue,
    wanted: str,
    level: int = 0,
    demand: Demand = SHORT,
    protocol: Protocol = Protocol.OPENAI,
) -> list[str]:
    found = route(catalogue, wanted, protocol, demand, {"llm/root": level})
    return [offer.qualified for offer in found.offers]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("auto", [OPENROUTER, REQUESTY, LOCALAI]),
        ("auto:cheapest", [LOCALAI, OPENROUTER, REQUESTY]),
        ("auto:fastest", [LOCALAI, OPENROUTER, REQUESTY]),
        ("gpt-4o-mini", [OPENROUTER]),
        ("localai/phi-4-14b", [LOCALAI]),
    ],
)
def test_a_call_goes_to_what_it_asks_for(wanted: str, expected: list[str]) -> None:
    assert chosen(guide(), wanted) == expected


@pytest.mark.parametrize("strategy", list(Strategy))
def test_bare_auto_follows_the_accounts_strategy(strategy: Strategy) -> None:
    assert chosen(guide(strategy=strategy), "auto") == chosen(guide(), f"auto:{strategy}")


def test_auto_leaves_out_models_whose_context_is_too_short() -> None:
    long = Demand(prompt_bytes=300_000, messages=1)
    expected = ["openrouter/gpt-4o-mini", "requesty/claude-3-sonnet"]
    assert chosen(guide(), "auto:cheapest", demand=long) == expected


def test_auto_says_when_no_context_is_long_enough() -> None:
    with pytest.raises(NoRoute, match="200000 tokens") as refused:
        chosen(guide(), "auto", demand=Demand(prompt_bytes=10**6, messages=1))
    assert refused.value.reason is Reason.TOO_LONG


def test_retries_limit_the_fallbacks() -> None:
    assert len(chosen(guide(retries=0), "auto")) == 1
    assert len(chosen(guide(retries=1), "auto")) == 2


def test_a_named_model_falls_back_to_the_same_at_another_provider() -> None:
    providers = [provider("a", model("m", 5), model("x", 1)), provider("b", model("m", 3))]
    catalogue = build(providers, account())["llm/root"]
    assert chosen(catalogue, "m") == ["a/m", "b/m"]
    assert chosen(catalogue, "b/m") == ["b/m"]


def test_names_may_contain_slashes() -> None:
    providers = [
        provider("openai", model("gpt", 1)),
        provider("router", model("openai/gpt", 2), model("meta/llama", 3)),
    ]
    catalogue = build(providers, account())["llm/root"]
    assert chosen(catalogue, "meta/llama") == ["router/meta/llama"]
    assert chosen(catalogue, "router/meta/llama") == ["router/meta/llama"]
    assert chosen(catalogue, "openai/gpt") == ["router/openai/gpt"]


@pytest.mark.parametrize(
    ("wanted", "level", "first", "origin"),
    [
        ("claude-3-sonnet", 1, "openrouter/gpt-4o-mini", "claude-3-sonnet"),
        ("requesty/claude-3-sonnet", 2, "localai/phi-4-14b", "claude-3-sonnet"),
        ("gpt-4o-mini", 1, "openrouter/gpt-4o-mini", None),
        ("auto", 2, "localai/phi-4-14b", "gpt-4o-mini"),
        ("auto", 1, "openrouter/gpt-4o-mini", None),
        ("auto:cheapest", 2, "localai/phi-4-14b", None),
    ],
)
def test_a_downgrade_moves_what_stands_above_its_step(
    wanted: str, level: int, first: str, origin: str | None
) -> None:
    found = route(guide(), wanted, Protocol.OPENAI, SHORT, {"llm/root": level})
    assert (found.offers[0].qualified, found.downgraded_from) == (first, origin)


def test_fallbacks_of_auto_stay_below_the_ceiling_too() -> None:
    assert chosen(guide(), "auto", level=1) == ["openrouter/gpt-4o-mini", "localai/phi-4-14b"]


def test_a_step_in_another_protocol_is_refused_with_what_is_still_allowed() -> None:
    providers = [
        provider("openai", model("big", 9), model("tiny", 1)),
        provider("anthropic", model("haiku", 5), protocol=Protocol.ANTHROPIC),
    ]
    catalogue = build(providers, account(ladder=("big", "haiku", "tiny")))["llm/root"]
    with pytest.raises(NoRoute, match="haiku speaks another protocol") as refused:
        chosen(catalogue, "big", level=1)
    assert refused.value.reason is Reason.DOWNGRADED
    assert refused.value.choices == ("tiny",)
    assert chosen(catalogue, "auto", level=1) == ["openai/tiny"]


def test_a_model_of_another_protocol_is_not_found() -> None:
    with pytest.raises(NoRoute, match="protocol OpenAI only") as refused:
        chosen(guide(), "gpt-4o-mini", protocol=Protocol.ANTHROPIC)
    assert refused.value.reason is Reason.UNKNOWN


def test_an_unknown_model_is_refused_with_the_choices() -> None:
    with pytest.raises(NoRoute, match="is not offered") as refused:
        chosen(guide(), "gpt-9")
    assert refused.value.reason is Reason.UNKNOWN
    assert refused.value.choices == ("gpt-4o-mini", "claude-3-sonnet", "phi-4-14b")


def test_an_unpriced_model_is_never_called() -> None:
    providers = [provider("a", model("new", None), model("old", 2))]
    catalogue = build(providers, account())["llm/root"]
    for wanted in ("new", "a/new"):
        with pytest.raises(NoRoute, match="no price") as refused:
            chosen(catalogue, wanted)
        assert refused.value.reason is Reason.UNPRICED
    assert chosen(catalogue, "auto") == ["a/old"]


def test_whoever_calls_a_model_that_searches_by_itself_is_told_why_it_has_no_price() -> None:
    catalogue = build([provider("a", model("perplexity/sonar", None))], account())["llm/root"]
    with pytest.raises(NoRoute, match="searches the web by itself") as refused:
        chosen(catalogue, "perplexity/sonar")
    assert refused.value.reason is Reason.UNPRICED


def test_a_priced_offer_of_a_name_is_used_where_another_has_no_price() -> None:
    providers = [provider("a", model("m", None)), provider("b", model("m", 2))]
    assert chosen(build(providers, account())["llm/root"], "m") == ["b/m"]


def test_children_choose_among_their_parents_providers() -> None:
    child = account("llm/child", parent="llm/root", providers=("localai", "openrouter", "stranger"))
    grandchild = account("llm/grand", parent="llm/child")
    found = build(GUIDE, account(), child, grandchild)
    for name in ("llm/child", "llm/grand"):
        offers = [offer.qualified for offer in found[name].offers]
        assert offers == ["localai/phi-4-14b", "openrouter/gpt-4o-mini"]


def test_every_account_of_the_path_lowers_a_call() -> None:
    child = account("llm/child", parent="llm/root")
    catalogue = build(GUIDE, account(), child)["llm/child"]
    for levels in ({"llm/root": 1}, {"llm/child": 1}, {"llm/root": 1, "llm/child": 1}):
        found = route(catalogue, "claude-3-sonnet", Protocol.OPENAI, SHORT, levels)
        assert found.offers[0].name == "gpt-4o-mini"
    assert allowed_models(catalogue, Protocol.OPENAI, {"llm/root": 2}) == ("phi-4-14b",)


@pytest.mark.parametrize(
    ("wanted", "expected", "origin"),
    [
        ("gpt-4o-mini", ["a/free-on-ladder", "a/free-too"], "gpt-4o-mini"),
        ("free-too", ["a/free-too", "a/free-on-ladder"], None),
        ("auto", ["a/free-on-ladder", "a/free-too"], None),
    ],
)
def test_a_spent_budget_may_go_on_with_free_models(
    wanted: str, expected: list[str], origin: str | None
) -> None:
    models = [model("gpt-4o-mini", 6), model("free-too", 0), model("free-on-ladder", 0)]
    ladder = ("gpt-4o-mini", "free-on-ladder")
    catalogue = build([provider("a", *models)], account(ladder=ladder))["llm/root"]
    found = free_route(catalogue, wanted, Protocol.OPENAI, SHORT)
    assert [offer.qualified for offer in found.offers] == expected
    assert found.downgraded_from == origin


def test_a_spent_budget_without_free_models_stops() -> None:
    catalogue = build([provider("a", model("m", 1))], account())["llm/root"]
    with pytest.raises(NoRoute) as refused:
        free_route(catalogue, "m", Protocol.OPENAI, SHORT)
    assert refused.value.reason is Reason.DOWNGRADED
