"""Which budgets are parts of which, and which claims to be a part are not accepted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmbudget.api.conditions import Reason
from llmbudget.decide.world import Budget

MAX_DEPTH: Final = 8
"""Budgets on the longest path, root included."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a budget is no part of a tree."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Forest:
    """All trees of a cluster."""

    trees: Mapping[str, tuple[Budget, ...]]
    """By the root's account: the root first, every parent before its children."""
    roots: Mapping[str, str]
    """By account: the root of the tree that it is part of."""
    rejected: Mapping[str, Rejection]
    """By account: budgets that belong to no tree."""


EMPTY: Final = Forest({}, {}, {})


def forest(budgets: Mapping[str, Budget]) -> Forest:
    """Arrange budgets, given by account, in trees."""
    return _planted(EMPTY, budgets, budgets)


def regrown(before: Forest, budgets: Mapping[str, Budget], changed: str) -> Forest:
    """Arrange budgets anew after one was added, changed or removed: its tree, and those that belong
    to none, which may belong there now. Other trees cost nothing."""
    root = before.roots.get(changed)
    members = {budget.account for budget in before.trees.get(root or "", ())}
    return _planted(before, budgets, {changed, *members, *before.rejected})


def _planted(before: Forest, budgets: Mapping[str, Budget], touched: Iterable[str]) -> Forest:
    roots, rejected, trees = dict(before.roots), dict(before.rejected), dict(before.trees)
    members: dict[str, set[str]] = {}
    for account in sorted(touched):
        rejected.pop(account, None)
        old = roots.pop(account, None)
        if old is not None:
            trees.pop(old, None)
        if account not in budgets:
            continue
        path = _path(budgets, account)
        if isinstance(path, Rejection):
            rejected[account] = path
        else:
            roots[account] = path[-1]
            members.setdefault(path[-1], set()).add(account)
    for root, found in members.items():
        kept = {budget.account for budget in before.trees.get(root, ())}
        all_of_it = found | {account for account in kept if roots.get(account) == root}
        trees[root] = _sorted(budgets, all_of_it)
    return Forest(trees, roots, dict(sorted(rejected.items())))


def _sorted(budgets: Mapping[str, Budget], accounts: Iterable[str]) -> tuple[Budget, ...]:
    """Sort the members of a tree: the root first, every parent before its children."""
    found = [(_depth(budgets, account), account) for account in accounts]
    return tuple(budgets[account] for _, account in sorted(found))


def _depth(budgets: Mapping[str, Budget], account: str) -> int:
    parent = budgets[account].parent
    return 0 if parent is None else 1 + _depth(budgets, parent)


def _path(budgets: Mapping[str, Budget], account: str) -> list[str] | Rejection:
    """List the accounts from a budget up to its root, or say what stands in between."""
    path = [account]
    while (parent := budgets[path[-1]].parent) is not None:
        child = budgets[path[-1]]
        if parent in path:
            circle = " → ".join([*path, parent])
            return Rejection(
                Reason.PARENT_CYCLE, f"parentRef leads in a circle: {circle}. Recreate one of them."
            )
        if parent not in budgets and parent.partition("/")[0] != child.namespace:
            return _refused(parent, child)
        if parent not in budgets:
            return Rejection(
                Reason.PARENT_NOT_FOUND,
                f"There is no LLMBudget {parent}: create it, or recreate this budget with"
                " another parentRef.",
            )
        if (refusal := _refusal(budgets[parent], child)) is not None:
            return refusal
        path.append(parent)
        for account in path[:-1]:
            if (abroad := _names_others(budgets, budgets[account], path)) is not None:
                return abroad
        if len(path) > MAX_DEPTH:
            return Rejection(
                Reason.PARENT_TOO_DEEP,
                f"The path to the root has more than {MAX_DEPTH} budgets: attach this one higher.",
            )
    return path


def _refusal(parent: Budget, child: Budget) -> Rejection | None:
    """Both sides must agree where a child is in another namespace than its parent."""
    if child.namespace == parent.namespace:
        return None
    allowed = parent.spec.allowed_children
    if allowed is None or child.namespace not in allowed.namespaces:
        return _refused(parent.account, child)
    return None


def _refused(parent: str, child: Budget) -> Rejection:
    """Say the same whether there is such a parent or not: who asks from another namespace must not
    find out."""
    return Rejection(
        Reason.PARENT_REFUSES,
        f"There is no LLMBudget {parent} that allows children in namespace {child.namespace}:"
        " add it to that budget's spec.allowedChildren.namespaces.",
    )


def _names_others(
    budgets: Mapping[str, Budget], child: Budget, path: Sequence[str]
) -> Rejection | None:
    """Outside the namespace of a budget above it, one names consumers of its own namespace only."""
    above = path[path.index(child.account) + 1 :]
    if all(budgets[account].namespace == child.namespace for account in above):
        return None
    named = [consumer.namespace for consumer in child.spec.consumers]
    named += [target.namespace for target in child.spec.targets]
    foreign = sorted({namespace for namespace in named if namespace != child.namespace})
    if not foreign:
        return None
    return Rejection(
        Reason.CONSUMER_REFUSED,
        f"LLMBudget {child.account} is outside the namespace of a budget above it, and names"
        " consumers and targets of its own namespace only: remove"
        f" {', '.join(foreign)}.",
    )
