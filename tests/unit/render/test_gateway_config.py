"""A tree's configuration has bounds: a child that has no room is left out, and nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.operator_stage import budget, provider, secret
from tests.support.worlds import world_of

from llmbudget.api.conditions import Reason
from llmbudget.decide.world import World
from llmbudget.render.gateway_config import (
    ACCOUNTS_BYTES,
    CHILD_BYTES,
    gateway_config,
    left_out,
)

Manifest = dict[str, Any]


def child(name: str, consumers: int, namespace: str = "llm", parent: str = "team-a") -> Manifest:
    names = [[f"{i:02}-{j:02}-" + "x" * 240 for j in range(64)] for i in range(consumers)]
    return budget(
        namespace,
        name,
        parentRef={"namespace": "llm", "name": parent},
        consumers=[{"namespace": namespace, "serviceAccounts": each} for each in names],
    )


def tree(*children: Manifest, cap: str = "1.00") -> World:
    root = budget("llm", budget={"monthlyCap": cap}, allowedChildren={"namespaces": ["elsewhere"]})
    return world_of([secret("llm"), provider("llm"), root, *children])


def test_a_child_too_large_holds_no_lowered_cap_up() -> None:
    fat = child("fat", 64, "elsewhere")
    below = child("below", 1, "elsewhere")
    below["spec"]["parentRef"] = {"namespace": "elsewhere", "name": "fat"}
    world = tree(fat, below, child("thin", 1), cap="0.01")
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
    assert taken < ACCOUNTS_BYTES + 8 * 1024
    assert taken > ACCOUNTS_BYTES - CHILD_BYTES
    assert config.accounts[0].name == "llm/team-a"
    assert len(left_out(world, config)) == len(world.budgets) - len(config.accounts) > 0
