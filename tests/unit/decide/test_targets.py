"""A Deployment's model is lowered and put back, and nothing of anyone else's is touched."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.decide.target_helpers import (
    ACCOUNT,
    CONSENT,
    ORDER,
    VARIABLE,
    Conflict,
    Env,
    Manifest,
    deployment,
    env_of,
    lower_to,
    patched,
    step,
    stored,
    target,
    unversioned,
    value,
    with_env,
)

from llmbudget.api.budget import Target
from llmbudget.api.meta import (
    ANNOTATION_DOWNGRADED_CONTAINER,
    ANNOTATION_DOWNGRADED_TO,
    ANNOTATION_ORIGINAL_ENV,
)
from llmbudget.decide.ladder import ceiling
from llmbudget.decide.targets import Lower, decide, former_target

OURS = {ANNOTATION_ORIGINAL_ENV, ANNOTATION_DOWNGRADED_TO, ANNOTATION_DOWNGRADED_CONTAINER}
FROM = {"name": VARIABLE, "valueFrom": {"configMapKeyRef": {"name": "models", "key": "m"}}}
BESIDE = {"name": "BESIDE", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}

entries = st.sampled_from([value("dear"), value("middling"), value("cheap"), value("unheard-of")])
entries |= st.sampled_from([FROM, {"name": VARIABLE}, value("")])
others = st.sampled_from([BESIDE, value("dear", "OTHER_MODEL"), value("", "EMPTY")])


@st.composite
def envs(draw: st.DrawFn) -> Env | None:
    """Absent, empty, with the variable among others, or without it."""
    if draw(st.booleans()) and draw(st.booleans()):
        return None
    around = draw(st.lists(others, unique_by=lambda entry: entry["name"], max_size=3))
    if draw(st.booleans()):
        around.insert(draw(st.integers(0, len(around))), draw(entries))
    return around


deployments = st.builds(
    lambda envs, more: deployment(*envs, annotations=CONSENT | more),
    st.lists(envs(), min_size=3, max_size=3),
    st.dictionaries(st.sampled_from(["note", "example.com/owner"]), st.text(), max_size=2),
)
targets = st.sampled_from([target(), target("a"), target("b"), target("c")])
ceilings = st.sampled_from([lower_to(model) for model in ORDER])


@given(deployments, targets, st.lists(st.none() | ceilings, max_size=4))
def test_whatever_was_in_force_putting_back_gives_the_original(
    original: Manifest, where: Target, ways: list[Lower | None]
) -> None:
    found = original
    for lower in ways:
        found = step(found, lower, where)
    assert unversioned(step(found, None, where)) == unversioned(original)


@given(deployments, targets, ceilings, ceilings)
def test_a_second_step_keeps_the_first_original(
    original: Manifest, where: Target, first: Lower, second: Lower
) -> None:
    once = step(original, first, where)
    twice = step(once, second, where)
    assert unversioned(twice) == unversioned(step(original, second, where))


@given(deployments, targets, ceilings)
def test_lowering_changes_one_variable_of_one_container(
    original: Manifest, where: Target, lower: Lower
) -> None:
    lowered = step(original, lower, where)
    for number, name in enumerate("abc"):
        before, after = env_of(original, number) or [], env_of(lowered, number) or []
        ours = {VARIABLE} if name == (where.container or "a") else set()
        assert [e for e in before if e["name"] not in ours] == [
            e for e in after if e["name"] not in ours
        ]


@given(deployments, targets, ceilings)
def test_what_is_lowered_already_is_left_alone(
    original: Manifest, where: Target, lower: Lower
) -> None:
    decision = decide(step(original, lower, where), ACCOUNT, where, lower)
    assert decision.operations == ()


@given(deployments, targets, ceilings, st.none() | entries | others)
def test_what_a_person_wrote_meanwhile_stays(
    original: Manifest, where: Target, lower: Lower, written: dict[str, Any] | None
) -> None:
    found = step(original, lower, where)
    index = "abc".index(where.container or "a")
    ours = value(found["metadata"]["annotations"].get("llmbudget.io/downgraded-to", ""))
    kept = [entry for entry in env_of(found, index) or [] if entry["name"] != VARIABLE]
    found = with_env(found, [written, *kept] if written else kept, index)
    back = step(found, None, where)
    assert written == ours or env_of(back, index) == env_of(found, index)
    assert not OURS & set(back["metadata"]["annotations"])


def test_a_persons_new_value_is_the_original_of_the_next_step() -> None:
    found = step(deployment([value("dear")]), lower_to("cheap"))
    found = step(with_env(found, [value("middling")]), lower_to("cheap"))
    assert env_of(found) == [value("cheap")]
    assert env_of(step(found, None)) == [value("middling")]


def test_variables_added_meanwhile_do_not_shift_what_is_put_back() -> None:
    found = step(deployment([BESIDE, value("dear")]), lower_to("cheap"))
    found = with_env(found, [value("x", "NEW"), *(env_of(found) or [])])
    assert env_of(step(found, None)) == [value("x", "NEW"), BESIDE, value("dear")]


@pytest.mark.parametrize("lower", [lower_to("cheap"), None], ids=["lower", "put back"])
def test_a_patch_of_an_outdated_deployment_fails_as_a_whole(lower: Lower | None) -> None:
    found = deployment([value("dear")])
    if lower is None:
        found = step(found, lower_to("cheap"))
    operations = decide(found, ACCOUNT, target(), lower).operations
    assert operations[0]["op"] == "test"
    with pytest.raises(Conflict, match="resourceVersion"):
        patched(stored(found), operations)


def test_the_annotations_tell_the_old_entry_and_our_value() -> None:
    decision = decide(deployment([FROM]), ACCOUNT, target(), lower_to("cheap"))
    assert decision.model == "cheap"
    annotations = patched(deployment([FROM]), decision.operations)["metadata"]["annotations"]
    assert json.loads(annotations["llmbudget.io/original-env"]) == FROM
    assert annotations["llmbudget.io/downgraded-to"] == "cheap"
    absent = step(deployment(None), lower_to("cheap"))["metadata"]["annotations"]
    assert json.loads(absent["llmbudget.io/original-env"]) is None


@pytest.mark.parametrize("env", [[value("dear")], [FROM], [], None])
def test_where_no_model_is_left_a_deployment_stays_as_it_is(env: Env | None) -> None:
    original = deployment(env)
    assert decide(original, ACCOUNT, target(), lambda _: None).operations == ()
    lowered = step(original, lower_to("cheap"))
    decision = decide(lowered, ACCOUNT, target(), lambda _: None)
    assert (decision.operations, decision.model) == ((), "cheap")


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({}, f"llmbudget.io/allow-budget={ACCOUNT}"),
        (CONSENT | {"llmbudget.io/allow-budget": "llm-platform/other"}, f"allow-budget={ACCOUNT}"),
        ({"llmbudget.io/allow-budget": ACCOUNT}, f"llmbudget.io/model-env={VARIABLE}"),
        (CONSENT | {"llmbudget.io/model-env": "PATH"}, f"llmbudget.io/model-env={VARIABLE}"),
    ],
)
def test_without_consent_nothing_is_touched(annotations: dict[str, str], said: str) -> None:
    changed = {"llmbudget.io/original-env": "null", "llmbudget.io/downgraded-to": "dear"}
    for known in (annotations, annotations | changed):
        found = deployment([value("dear")], annotations=known)
        for lower in (lower_to("cheap"), None):
            decision = decide(found, ACCOUNT, target(), lower)
            assert (decision.operations, decision.model) == ((), None)
            assert said in (decision.refusal or "")


def test_a_container_that_is_not_there_is_named() -> None:
    decision = decide(deployment([value("dear")]), ACCOUNT, target("gone"), lower_to("cheap"))
    assert decision.operations == ()
    assert decision.refusal == "it has no container gone"


@pytest.mark.parametrize("text", ["", "{", "17", '"dear"', "[]", '{"value": "dear"}'])
def test_an_original_that_we_did_not_write_is_forgotten_not_put_back(text: str) -> None:
    strange = {"llmbudget.io/original-env": text, "llmbudget.io/downgraded-to": "cheap"}
    found = deployment([value("cheap")], annotations=CONSENT | strange)
    assert unversioned(step(found, None)) == unversioned(deployment([value("cheap")]))


def test_a_former_target_is_found_by_its_annotations_and_put_back() -> None:
    original = deployment(None, [value("dear")])
    where = former_target(step(original, lower_to("cheap"), target("b")))
    assert where is not None
    assert (where.namespace, where.container, where.env) == ("team-a", "b", VARIABLE)
    lowered = step(original, lower_to("cheap"), target("b"))
    assert unversioned(step(lowered, None, where)) == unversioned(original)


def test_annotations_of_someone_elses_writing_lead_to_no_target() -> None:
    changed = step(deployment(None, [value("dear")]), lower_to("cheap"), target("b"))
    annotations = changed["metadata"]["annotations"]
    annotations[ANNOTATION_ORIGINAL_ENV] = "[" * 100_000
    assert unversioned(step(changed, None, target("b")))["spec"] == unversioned(changed)["spec"]
    annotations["llmbudget.io/model-env"] = "no variable"
    assert former_target(changed) is None


def test_of_a_former_target_that_a_person_changed_only_annotations_are_put_back() -> None:
    lowered = with_env(step(deployment([value("dear")]), lower_to("cheap")), [value("middling")])
    back = step(lowered, None, former_target(lowered))
    assert unversioned(back) == unversioned(deployment([value("middling")]))


def test_a_deployment_that_was_not_changed_is_no_former_target() -> None:
    assert former_target(deployment([value("dear")])) is None
    assert former_target(deployment([{"name": VARIABLE}], annotations={})) is None


@pytest.mark.parametrize("env", [None, [], [FROM]], ids=["absent", "empty", "valueFrom"])
def test_a_variable_that_cannot_be_read_gets_the_ceiling(env: Env | None) -> None:
    weights = {"dear": Decimal(9), "cheap": Decimal(1)}
    lower: Lower = lambda model: ceiling(model, ("dear", "cheap"), 1, weights)  # noqa: E731
    assert decide(deployment(env), ACCOUNT, target(), lower).model == "cheap"


def test_of_a_variable_that_is_set_twice_the_last_counts() -> None:
    found = step(deployment([value("cheap"), value("dear")]), lower_to("cheap"))
    assert (env_of(found) or [])[-1] == value("cheap")


def test_a_persons_second_entry_is_not_removed_with_ours() -> None:
    found = step(deployment([]), lower_to("cheap"))
    found = with_env(found, [*(env_of(found) or []), value("middling")])
    assert value("middling") in (env_of(step(found, None)) or [])


def test_one_container_of_a_deployment_at_a_time_is_changed_and_put_back() -> None:
    original = deployment([value("dear")], [value("middling")])
    found = step(original, lower_to("cheap"), target("a"))
    second = decide(found, ACCOUNT, target("b"), lower_to("cheap"))
    assert second.operations == ()
    assert second.refusal == "its container a is changed already"
    for where in (target("b"), target("a")):
        assert unversioned(step(found, None, where)) == unversioned(original)


def test_a_container_that_holds_the_same_model_by_itself_is_not_taken_for_ours() -> None:
    original = deployment([value("cheap")], [value("dear")])
    lowered = step(original, lower_to("cheap"), target("b"))
    for where in (target("a"), target("b"), former_target(lowered)):
        assert unversioned(step(lowered, None, where)) == unversioned(original)


def test_what_is_kept_of_a_container_that_is_gone_is_forgotten() -> None:
    lowered = step(deployment([value("cheap")], [value("dear")]), lower_to("cheap"), target("b"))
    del lowered["spec"]["template"]["spec"]["containers"][1]
    assert former_target(lowered) is None
    assert unversioned(step(lowered, None)) == unversioned(deployment([value("cheap")]))


def test_an_original_of_another_variable_is_not_put_in_this_ones_place() -> None:
    kept = {"llmbudget.io/original-env": json.dumps(value("dear", "FORMER"))}
    ours = {"llmbudget.io/downgraded-to": "cheap"}
    found = deployment([value("cheap")], annotations=CONSENT | kept | ours)
    assert env_of(step(found, None)) == [value("cheap")]
