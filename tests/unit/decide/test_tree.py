"""Budgets form trees; what claims to be a part of one without its consent is told why not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.api.budget import BudgetSpec
from llmbudget.api.conditions import Reason
from llmbudget.decide.tree import EMPTY, MAX_DEPTH, Forest, forest, regrown
from llmbudget.decide.world import Budget


def budget(account: str, parent: str | None = None, **spec: Any) -> Budget:
    namespace, _, name = account.partition("/")
    if parent is not None:
        above, _, parent_name = parent.partition("/")
        spec["parentRef"] = {"namespace": above, "name": parent_name}
    return Budget(
        namespace=namespace,
        name=name,
        uid=f"uid-of-{account}",
        generation=1,
        annotations={},
        spec=BudgetSpec.model_validate(spec),
    )


def planted(*budgets: Budget) -> Forest:
    return forest({one.account: one for one in budgets})


def names(found: Forest, root: str) -> list[str]:
    return [one.account for one in found.trees[root]]


def allowing(*namespaces: str) -> dict[str, Any]:
    return {"allowedChildren": {"namespaces": list(namespaces)}}


def spent_by(*namespaces: str) -> dict[str, Any]:
    return {"consumers": [{"namespace": namespace} for namespace in namespaces]}


def test_a_budget_without_parent_is_a_root() -> None:
    found = planted(budget("a/one"), budget("b/two"))
    assert found.roots == {"a/one": "a/one", "b/two": "b/two"}
    assert names(found, "a/one") == ["a/one"]
    assert found.rejected == {}


def test_every_budget_knows_the_root_of_its_tree() -> None:
    found = planted(
        budget("a/root"),
        budget("a/child", "a/root"),
        budget("a/grandchild", "a/child"),
        budget("a/other"),
    )
    assert found.roots["a/grandchild"] == found.roots["a/child"] == "a/root"
    assert found.roots["a/other"] == "a/other"


def test_parents_stand_before_their_children_whatever_their_names() -> None:
    found = planted(
        budget("a/a-leaf", "a/m-child"), budget("a/m-child", "a/z-root"), budget("a/z-root")
    )
    assert names(found, "a/z-root") == ["a/z-root", "a/m-child", "a/a-leaf"]


def test_a_parent_ref_without_namespace_means_the_childs_own() -> None:
    child = budget("a/child", parentRef={"name": "root"})
    found = planted(budget("a/root"), budget("b/root"), child)
    assert found.roots["a/child"] == "a/root"


def test_a_missing_parent_is_named() -> None:
    rejection = planted(budget("a/child", "a/gone")).rejected["a/child"]
    assert rejection.reason is Reason.PARENT_NOT_FOUND
    assert "a/gone" in rejection.message
    assert "create it" in rejection.message


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_is_refused_and_shown_whole(length: int) -> None:
    circle = [budget(f"a/b{i}", f"a/b{(i + 1) % length}") for i in range(length)]
    found = planted(*circle, budget("a/root"))
    assert set(found.rejected) == {one.account for one in circle}
    for rejection in found.rejected.values():
        assert rejection.reason is Reason.PARENT_CYCLE
        assert all(one.account in rejection.message for one in circle)
        assert "Recreate" in rejection.message
    assert set(found.trees) == {"a/root"}


def test_what_hangs_on_a_circle_belongs_to_no_tree() -> None:
    found = planted(budget("a/x", "a/y"), budget("a/y", "a/x"), budget("a/leaf", "a/x"))
    assert found.rejected["a/leaf"].reason is Reason.PARENT_CYCLE
    assert found.trees == {}


def test_a_path_may_be_as_long_as_the_limit_and_no_longer() -> None:
    chain = [budget("a/b0")]
    chain += [budget(f"a/b{i}", f"a/b{i - 1}") for i in range(1, MAX_DEPTH + 2)]
    found = planted(*chain)
    assert names(found, "a/b0") == [one.account for one in chain[:MAX_DEPTH]]
    for one in chain[MAX_DEPTH:]:
        assert found.rejected[one.account].reason is Reason.PARENT_TOO_DEEP
        assert "attach this one higher" in found.rejected[one.account].message


@pytest.mark.parametrize(
    "spec", [{}, allowing(), allowing("c")], ids=["silent", "nobody", "someone else"]
)
def test_a_parent_must_allow_the_namespace_of_a_child(spec: dict[str, Any]) -> None:
    found = planted(budget("a/root", **spec), budget("b/child", "a/root"))
    rejection = found.rejected["b/child"]
    assert rejection.reason is Reason.PARENT_REFUSES
    assert "a/root" in rejection.message
    assert "namespace b:" in rejection.message
    assert "spec.allowedChildren.namespaces" in rejection.message
    assert names(found, "a/root") == ["a/root"]


def test_whether_a_budget_exists_is_not_told_to_another_namespace() -> None:
    child = budget("b/child", "a/root")
    there, absent = planted(budget("a/root"), child), planted(child)
    assert there.rejected["b/child"] == absent.rejected["b/child"]


def test_a_child_of_an_allowed_namespace_is_a_part() -> None:
    found = planted(budget("a/root", **allowing("b")), budget("b/child", "a/root", **spent_by("b")))
    assert names(found, "a/root") == ["a/root", "b/child"]


def test_a_parents_own_namespace_needs_no_permission_and_may_name_others() -> None:
    found = planted(budget("a/root", **allowing("b")), budget("a/child", "a/root", **spent_by("c")))
    assert found.rejected == {}


def test_permission_is_the_parents_and_not_the_roots() -> None:
    found = planted(
        budget("a/root", **allowing("b", "c")),
        budget("b/child", "a/root"),
        budget("c/grandchild", "b/child"),
    )
    assert found.rejected["c/grandchild"].reason is Reason.PARENT_REFUSES
    assert "b/child" in found.rejected["c/grandchild"].message


@pytest.mark.parametrize(
    "spec",
    [
        spent_by("b", "z", "c"),
        {
            "targets": [
                {"namespace": name, "selector": {"matchLabels": {"a": "b"}}, "env": "M"}
                for name in ("z", "b", "c")
            ]
        },
    ],
    ids=["consumers", "targets"],
)
def test_a_child_abroad_names_only_its_own_namespace(spec: dict[str, Any]) -> None:
    found = planted(budget("a/root", **allowing("b")), budget("b/child", "a/root", **spec))
    rejection = found.rejected["b/child"]
    assert rejection.reason is Reason.CONSUMER_REFUSED
    assert rejection.message.endswith("remove c, z.")


def test_a_grandchild_abroad_names_only_its_own_namespace_too() -> None:
    found = planted(
        budget("a/root", **allowing("b"), **spent_by("victim")),
        budget("b/child", "a/root"),
        budget("b/grandchild", "b/child", **spent_by("victim")),
    )
    assert "b/grandchild" in found.rejected


@pytest.mark.parametrize(
    "parent",
    [
        budget("a/parent", "a/gone"),
        budget("a/parent", "c/root"),
        budget("a/parent", "a/parent"),
        budget("a/parent", "b/root", **spent_by("z")),
    ],
    ids=["no parent", "refused", "circle", "names others"],
)
def test_children_of_a_rejected_budget_are_rejected_for_the_same_reason(parent: Budget) -> None:
    found = planted(
        budget("c/root"),
        budget("b/root", **allowing("a")),
        parent,
        budget("a/child", "a/parent"),
        budget("a/grandchild", "a/child"),
    )
    reasons = {found.rejected[f"a/{name}"].reason for name in ("parent", "child", "grandchild")}
    assert len(reasons) == 1
    assert set(found.trees) == {"c/root", "b/root"}


def test_a_rejected_descendant_is_told_which_budget_is_at_fault() -> None:
    found = planted(
        budget("a/root", **allowing("b")),
        budget("b/culprit", "a/root", **spent_by("z")),
        budget("b/innocent", "b/culprit"),
    )
    assert "b/culprit" in found.rejected["b/innocent"].message


def test_a_rejected_child_leaves_its_siblings_alone() -> None:
    found = planted(
        budget("a/root"), budget("a/good", "a/root"), budget("b/bad", "a/root"), budget("b/own")
    )
    assert names(found, "a/root") == ["a/root", "a/good"]
    assert set(found.rejected) == {"b/bad"}


numbers = st.integers(0, 11)


@given(st.dictionaries(numbers, st.none() | numbers, max_size=12))
def test_each_budget_is_in_one_tree_below_its_parent_or_rejected(
    parents: dict[int, int | None],
) -> None:
    budgets = {
        one.account: one
        for one in (
            budget(f"a/b{child}", None if parent is None else f"a/b{parent}")
            for child, parent in parents.items()
        )
    }
    found = forest(budgets)
    assert set(found.roots) | set(found.rejected) == set(budgets)
    assert not set(found.roots) & set(found.rejected)
    members = [one.account for tree in found.trees.values() for one in tree]
    assert sorted(members) == sorted(found.roots)
    for root, tree in found.trees.items():
        order = [one.account for one in tree]
        assert order[0] == root
        assert tree[0].parent is None
        for one in tree[1:]:
            assert one.parent in order[: order.index(one.account)]


@given(st.permutations(range(6)))
def test_the_order_in_which_budgets_were_seen_does_not_matter(order: list[int]) -> None:
    budgets = [budget("a/b0")] + [budget(f"a/b{i}", f"a/b{(i - 1) // 2}") for i in range(1, 6)]
    assert names(planted(*(budgets[i] for i in order)), "a/b0") == names(planted(*budgets), "a/b0")


places = st.tuples(st.sampled_from("ab"), st.integers(0, 5)).map(lambda p: f"{p[0]}/b{p[1]}")
steps = st.lists(st.tuples(places, st.none() | places, st.booleans(), st.booleans()), max_size=20)


@given(steps)
def test_trees_that_are_regrown_after_each_change_are_those_planted_anew(
    changes: list[tuple[str, str | None, bool, bool]],
) -> None:
    budgets: dict[str, Budget] = {}
    found = EMPTY
    for account, parent, open_to_all, gone in changes:
        if gone:
            budgets.pop(account, None)
        else:
            budgets[account] = budget(
                account, parent, **(allowing("a", "b") if open_to_all else {})
            )
        found = regrown(found, budgets, account)
        assert found == forest(budgets)
