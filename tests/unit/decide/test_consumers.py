"""A caller spends from the budget that names it most specifically."""

from __future__ import annotations

import pytest

from llmbudget.contract.config import AccountConfig, ConsumerConfig, Limits
from llmbudget.decide.consumers import Consumers, NoBudget


def account(name: str, *consumers: ConsumerConfig) -> AccountConfig:
    return AccountConfig(name=name, cap_nano=1, providers=("p",), consumers=consumers)


def entry(namespace: str, *names: str, agent: str | None = None) -> ConsumerConfig:
    return ConsumerConfig(namespace=namespace, service_accounts=names or None, agent=agent)


def test_a_service_account_comes_before_its_namespace() -> None:
    consumers = Consumers(
        [account("llm/all", entry("apps")), account("llm/one", entry("apps", "researcher"))]
    )
    assert consumers.match("apps", "researcher", None).account.name == "llm/one"
    assert consumers.match("apps", "writer", None).account.name == "llm/all"


def test_within_a_budget_the_specific_entry_gives_agent_and_limits() -> None:
    limited = ConsumerConfig(
        namespace="apps",
        service_accounts=("researcher",),
        agent="r2",
        limits=Limits(concurrent=5),
    )
    for order in ([limited, entry("apps")], [entry("apps"), limited]):
        found = Consumers([account("llm/a", *order)]).match("apps", "researcher", None)
        assert (found.agent, found.limits.concurrent) == ("r2", 5)


def test_without_an_agent_the_service_account_is_it() -> None:
    found = Consumers([account("llm/a", entry("apps"))]).match("apps", "writer", None)
    assert (found.agent, found.name) == ("writer", "apps/writer")


@pytest.mark.parametrize("wanted", ["llm/all", "all"])
def test_the_header_chooses_among_all_that_match(wanted: str) -> None:
    consumers = Consumers(
        [account("llm/all", entry("apps")), account("llm/one", entry("apps", "researcher"))]
    )
    assert consumers.match("apps", "researcher", wanted).account.name == "llm/all"


def test_several_equal_matches_are_refused_with_the_choices() -> None:
    consumers = Consumers([account("llm/b", entry("apps")), account("llm/a", entry("apps"))])
    with pytest.raises(NoBudget, match="choose one by x-llmbudget-budget") as refused:
        consumers.match("apps", "writer", None)
    assert refused.value.choices == ("llm/a", "llm/b")


@pytest.mark.parametrize("caller", [("other", "writer"), ("apps", "writer"), ("app", "researcher")])
def test_nobody_else_has_a_budget(caller: tuple[str, str]) -> None:
    consumers = Consumers([account("llm/a", entry("apps", "researcher"))])
    with pytest.raises(NoBudget, match="No budget names"):
        consumers.match(*caller, None)


def test_the_header_gives_nobody_anothers_budget() -> None:
    consumers = Consumers([account("llm/a", entry("apps")), account("llm/b", entry("other"))])
    with pytest.raises(NoBudget, match="doesn't name") as refused:
        consumers.match("apps", "writer", "llm/b")
    assert refused.value.choices == ("llm/a",)
