"""The store knows what the watches said last, parsed, and tells what concerns nobody."""

from __future__ import annotations

from typing import Any

import pytest

from llmbudget.api.conditions import Reason
from llmbudget.reconcile.store import Manifest, Store, parse_budget, parse_provider

MODELS = [{"name": "gpt-4o-mini"}]
CREDENTIALS = {"secretKeyRef": {"name": "keys", "key": "K"}}
PROVIDER = {"endpoint": "https://api.example/v1", "credentials": CREDENTIALS, "models": MODELS}
BAD_CAP = {"budget": {"monthlyCap": "lots"}}


def resource(name: str = "team-a", version: int = 1, **changes: Any) -> Manifest:
    """A resource with its spec, as a watch tells it; changes to its metadata and to the rest."""
    top = {key: changes.pop(key) for key in ("spec", "status") if key in changes}
    metadata = {
        "namespace": "llm",
        "name": name,
        "uid": f"uid-of-{name}",
        "generation": 1,
        "resourceVersion": str(version),
    }
    return {"metadata": metadata | changes, "spec": {}} | top


def child(name: str, parent: str, **changes: Any) -> Manifest:
    return resource(name, spec={"parentRef": {"name": parent}}, **changes)


def store_of(*budgets: Manifest) -> Store:
    store = Store()
    for raw in budgets:
        store.put_budget(raw)
    return store


def test_a_budget_is_parsed_with_its_profile_and_defaults() -> None:
    store = store_of(resource(spec={"profile": "smb"}), resource("plain"))
    caps = {name: one.spec.budget.monthly_cap for name, one in store.budgets.items()}
    assert caps == {"llm/team-a": "100.00", "llm/plain": "20.00"}


def test_what_metadata_says_is_taken_over() -> None:
    raw = resource(
        generation=7,
        annotations={"a": "b"},
        finalizers=["f"],
        deletionTimestamp="2026-11-23T12:00:00Z",
    )
    budget = parse_budget(raw)
    assert (budget.account, budget.uid, budget.generation) == ("llm/team-a", "uid-of-team-a", 7)
    assert (budget.annotations, budget.finalizers, budget.deleting) == ({"a": "b"}, ("f",), True)
    bare = parse_budget(resource(annotations=None, finalizers=None))
    assert (bare.annotations, bare.finalizers, bare.deleting) == ({}, (), False)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": {"phase": "Ready"}},
        {"managedFields": [{"manager": "llmbudget"}]},
        {"version": 9},
        {"labels": {"a": "b"}},
    ],
    ids=["status", "managed fields", "version", "labels"],
)
def test_what_concerns_nobody_is_remembered_but_no_change(changes: dict[str, Any]) -> None:
    store = store_of(resource())
    budget, trees = store.budgets["llm/team-a"], store.forest
    again = resource(**changes)
    assert store.put_budget(again) is False
    known = store.raw["LLMBudget", "llm/team-a"]
    again["metadata"].pop("managedFields", None)
    assert known == again, "but who wrote which field is half of a resource, and of no use"
    assert store.budgets["llm/team-a"] is budget
    assert store.forest is trees


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": 2, "spec": {"budget": {"monthlyCap": "5"}}},
        {"uid": "another"},
        {"annotations": {"llmbudget.io/approved-period": "2026-11"}},
        {"finalizers": ["llmbudget.io/restore-targets"]},
        {"deletionTimestamp": "2026-11-23T12:00:00Z"},
    ],
    ids=["spec", "created again", "annotations", "finalizers", "deletion"],
)
def test_what_matters_is_a_change_and_parsed_anew(changes: dict[str, Any]) -> None:
    store = store_of(resource())
    before = store.budgets["llm/team-a"]
    assert store.put_budget(resource(**changes)) is True
    assert store.budgets["llm/team-a"] != before
    assert store.forest.trees["llm/team-a"] == (store.budgets["llm/team-a"],)


def test_the_first_sight_is_a_change_of_either_kind() -> None:
    store = Store()
    assert store.put_budget(resource()) is True
    assert store.put_provider(resource(spec=PROVIDER)) is True
    assert store.put_provider(resource(spec=PROVIDER, status={"models": 1})) is False
    assert store.put_provider(resource(spec=PROVIDER, generation=2)) is True


def test_a_budget_that_breaks_a_rule_is_invalid_and_says_where_not_what() -> None:
    store = store_of(resource(spec=BAD_CAP))
    assert store.budgets == {}
    assert set(store.invalid) == {"llm/team-a"}
    assert "spec.budget.monthlyCap" in store.invalid["llm/team-a"]
    assert "lots" not in store.invalid["llm/team-a"]
    assert store.forest.trees == {}


def test_all_broken_rules_are_told_up_to_five() -> None:
    consumers = [{"namespace": f"Wrong-{number}"} for number in range(9)]
    store = store_of(resource(spec={"consumers": consumers}))
    assert store.invalid["llm/team-a"].count("spec.consumers.") == 5


def test_a_budget_may_break_and_be_mended() -> None:
    store = store_of(resource())
    assert store.put_budget(resource(generation=2, spec=BAD_CAP)) is True
    assert ("llm/team-a" in store.budgets, "llm/team-a" in store.invalid) == (False, True)
    assert store.put_budget(resource(generation=3)) is True
    assert ("llm/team-a" in store.budgets, "llm/team-a" in store.invalid) == (True, False)
    assert set(store.forest.trees) == {"llm/team-a"}


def test_the_status_of_an_invalid_budget_changes_nothing() -> None:
    store = store_of(resource(spec=BAD_CAP))
    assert store.put_budget(resource(spec=BAD_CAP, status={"phase": "Failed"})) is False
    assert set(store.invalid) == {"llm/team-a"}


def test_the_forest_follows_each_change() -> None:
    store = store_of(child("part", "org"))
    assert store.forest.rejected["llm/part"].reason is Reason.PARENT_NOT_FOUND
    store.put_budget(resource("org"))
    assert store.forest.roots == {"llm/org": "llm/org", "llm/part": "llm/org"}
    store.drop("LLMBudget", resource("org"))
    assert store.forest.trees == {}
    assert set(store.forest.rejected) == {"llm/part"}


@pytest.mark.parametrize("spec", [{}, BAD_CAP], ids=["valid", "invalid"])
def test_what_is_dropped_leaves_no_trace(spec: dict[str, Any]) -> None:
    store = store_of(resource(spec=spec))
    store.put_provider(resource(spec=PROVIDER))
    store.drop("LLMBudget", resource())
    assert (store.budgets, store.invalid) == ({}, {})
    assert set(store.raw) == {("LLMProvider", "llm/team-a")}
    store.drop("LLMProvider", resource())
    assert (store.providers, store.raw) == ({}, {})
    store.drop("LLMProvider", resource())


def test_what_comes_back_after_a_drop_is_a_change() -> None:
    store = store_of(resource())
    store.drop("LLMBudget", resource())
    assert store.put_budget(resource()) is True


# What the API server answered.


@pytest.mark.parametrize(
    ("known", "answered", "kept"), [(3, 5, 5), (5, 3, 5), (9, 10, 10), (10, 9, 10), (4, 4, 4)]
)
def test_of_an_answer_and_a_watch_the_later_is_kept(known: int, answered: int, kept: int) -> None:
    store = store_of(resource(version=known, status={"phase": "Pending"}))
    store.answered("LLMBudget", resource(version=answered, status={"phase": "Ready"}))
    raw = store.raw["LLMBudget", "llm/team-a"]
    assert raw["metadata"]["resourceVersion"] == str(kept)
    assert raw["status"]["phase"] == ("Ready" if answered > known else "Pending")


def test_an_answer_about_what_is_gone_is_ignored() -> None:
    store = Store()
    store.answered("LLMBudget", resource(version=5))
    assert store.raw == {}


def test_a_spec_that_an_answer_brings_is_still_a_change() -> None:
    store = store_of(resource(version=1))
    newer = resource(version=2, generation=2, spec={"budget": {"monthlyCap": "5"}})
    store.answered("LLMBudget", newer)
    assert store.put_budget(newer) is True
    assert store.budgets["llm/team-a"].spec.budget.monthly_cap == "5"


# Providers.


def test_a_provider_that_breaks_a_rule_is_kept_with_the_reason() -> None:
    provider = parse_provider(resource(spec=PROVIDER | {"endpoint": "ftp://secret.example"}))
    assert provider.spec is None
    assert provider.error.startswith("spec.endpoint: ")
    assert "secret.example" not in provider.error
    sound = parse_provider(resource(spec=PROVIDER))
    assert (sound.error, sound.spec is None) == ("", False)


def test_providers_are_listed_by_their_names_in_one_namespace() -> None:
    store = Store()
    for name, namespace in (("one", "llm"), ("two", "llm"), ("one", "other")):
        store.put_provider(resource(name, namespace=namespace, spec=PROVIDER))
    assert set(store.providers) == {"llm/one", "llm/two", "other/one"}
    found = store.providers_in("llm")
    assert {name: one.namespace for name, one in found.items()} == {"one": "llm", "two": "llm"}
    assert store.providers_in("nowhere") == {}


def test_a_provider_matters_to_the_roots_of_its_namespace_that_name_it() -> None:
    names = {"providers": [{"name": "one"}]}
    store = store_of(
        resource("user", spec=names),
        resource("second-user", spec=names),
        resource("other", spec={"providers": [{"name": "two"}]}),
        resource("abroad", namespace="far", spec=names),
        resource("part", spec={"parentRef": {"name": "other"}} | names),
    )
    store.put_provider(resource("one", spec=PROVIDER))
    assert set(store.users_of(store.providers["llm/one"])) == {"llm/user", "llm/second-user"}
