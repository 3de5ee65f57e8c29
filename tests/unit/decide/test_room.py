"""A tree's configuration has bounds: who has no room is left out, and nobody else pays for it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.operator_stage import budget, provider, secret
from tests.support.worlds import world_of

from llmbudget.api.conditions import Reason
from llmbudget.contract.config import GatewayConfig
from llmbudget.decide.consumers import Consumers, NoBudget
from llmbudget.decide.room import NAMESPACE_BYTES, TREE_BYTES
from llmbudget.decide.world import World
from llmbudget.render.gateway_config import gateway_config, left_out

Manifest = dict[str, Any]
ABROAD = ["elsewhere", *(f"team-{number}" for number in range(8))]


def child(name: str, consumers: int, namespace: str = "llm", **spec: Any) -> Manifest:
    """A child whose consumers take 17 KB each."""
    names = [
        [f"{name}-{i:02}-{j:02}-".ljust(246, "x") for j in range(64)] for i in range(consumers)
    ]
    entries = [{"namespace": namespace, "serviceAccounts": each} for each in names]
    parent = {"namespace": "llm", "name": "team-a"}
    return budget(namespace, name, **{"parentRef": parent, "consumers": entries} | spec)


def tree(*children: Manifest, **spec: Any) -> World:
    root = budget("llm", **{"allowedChildren": {"namespaces": ABROAD}} | spec)
    return world_of([secret("llm"), provider("llm"), root, *children])


def names(world: World) -> list[str]:
    return [account.name for account in gateway_config(world, ()).accounts]


def payer(config: GatewayConfig, namespace: str, account: str) -> str:
    return Consumers(config.accounts).match(namespace, account, None).account.name


def test_a_child_too_large_holds_no_lowered_cap_up() -> None:
    fat = child("fat", 64, "elsewhere")
    below = child("below", 1, "elsewhere", parentRef={"namespace": "elsewhere", "name": "fat"})
    world = tree(fat, below, child("thin", 1), budget={"monthlyCap": "0.01"})
    config = gateway_config(world, ())
    assert [account.name for account in config.accounts] == ["llm/team-a", "llm/thin"]
    assert config.accounts[0].cap_nano == 10_000_000
    found = left_out(world, config)
    assert [(each.account, each.reason, each.fatal) for each in found] == [
        ("elsewhere/fat", Reason.TREE_TOO_LARGE, False),
        ("elsewhere/below", Reason.TREE_TOO_LARGE, False),
    ]
    assert "128 KiB" in found[0].message


@pytest.mark.parametrize("consumers", [1, 7])
def test_as_many_as_fit_are_in_and_the_document_stays_below_a_config_map(consumers: int) -> None:
    world = tree(*(child(f"child-{number:02}", consumers) for number in range(60)))
    config = gateway_config(world, ())
    taken = len(config.to_json().encode())
    assert TREE_BYTES - 128 * 1024 < taken < TREE_BYTES + 8 * 1024
    assert config.accounts[0].name == "llm/team-a"
    assert len(left_out(world, config)) == len(world.budgets) - len(config.accounts) > 0


def test_another_namespace_keeps_none_out() -> None:
    many = [child(f"a{number}", 6, "elsewhere") for number in range(10)]
    beside = child("a", 1, "team-1")
    assert names(tree(*many, beside, child("prod", 20))) == [
        "llm/team-a",
        "elsewhere/a0",
        "llm/prod",
        "team-1/a",
    ]


def test_all_other_namespaces_together_keep_the_roots_own_in() -> None:
    own = [child(f"z{number}", 7) for number in range(3)]
    others = [child("a", 7, namespace) for namespace in ABROAD]
    found = names(tree(*own, *others))
    assert {"llm/z0", "llm/z1", "llm/z2"} < set(found)
    assert len(found) < 1 + len(own) + len(others)


def test_callers_of_who_is_left_out_spend_no_other_money() -> None:
    bot = child("bot", 64)
    bot["spec"]["consumers"][0]["serviceAccounts"][0] = "bot"
    root = [{"namespace": "llm"}, {"namespace": "llm", "serviceAccounts": ["bot", "admin"]}]
    thin = budget(
        "llm",
        "thin",
        parentRef={"namespace": "llm", "name": "team-a"},
        consumers=[{"namespace": "llm", "serviceAccounts": ["cron"]}],
    )
    world = tree(bot, thin, consumers=[*root, {"namespace": "apps"}])
    config = gateway_config(world, ())
    assert "llm/bot" not in [account.name for account in config.accounts]
    for refused in ("bot", "whoever"):
        with pytest.raises(NoBudget):
            payer(config, "llm", refused)
    assert payer(config, "llm", "admin") == "llm/team-a"
    assert payer(config, "llm", "cron") == "llm/thin"
    assert payer(config, "apps", "anyone") == "llm/team-a"


def test_who_is_left_out_with_a_whole_namespace_keeps_it_out() -> None:
    fat = child("fat", 64, "elsewhere")
    fat["spec"]["consumers"].pop()
    fat["spec"]["consumers"].append({"namespace": "elsewhere"})
    config = gateway_config(tree(fat, consumers=[{"namespace": "elsewhere"}]), ())
    with pytest.raises(NoBudget):
        payer(config, "elsewhere", "anyone")


def test_a_tree_that_fits_is_left_as_it_is() -> None:
    world = tree(child("one", 2), child("two", 2, "elsewhere"), consumers=[{"namespace": "llm"}])
    config = gateway_config(world, ())
    assert len(config.accounts) == 3
    assert config.accounts[0].consumers[0].service_accounts is None
    assert left_out(world, config) == ()
    assert NAMESPACE_BYTES < TREE_BYTES
