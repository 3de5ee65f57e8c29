"""A status says what is so, what is wrong and what to do, and keeps what it can't know anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.reconcile.status_helpers import (
    CHILD,
    EARLY,
    NOW,
    ROOT,
    USD,
    balance,
    condition,
    situation,
    status_of,
)

from llmbudget.api.budget_status import ChangedTarget
from llmbudget.api.conditions import Reason
from llmbudget.decide.validity.finding import Finding
from llmbudget.reconcile.status import (
    provider_problem,
    provider_status,
    rejected_status,
    status_manifest,
)
from llmbudget.reconcile.targets import TargetReport

AWAY = {"connected": False, "problem": "connection refused"}
REFUSED = TargetReport(refused=["Deployment a/b: it does not consent: annotate it."])
STALLING = {
    "monitoring": {"datadog": {"enabled": True, "apiKeySecretRef": {"name": "d", "key": "k"}}}
}
FATAL = {"budget": {"timeZone": "Mars/Phobos"}}
SPENT = {"spent_nano": 500 * USD}
FAULT = Finding(Reason.SECRET_NOT_CONSENTING, "label it", provider="openrouter")


@pytest.mark.parametrize(
    ("figures", "around", "phase"),
    [
        ({}, {}, "Ready"),
        ({"held_nano": 400 * USD}, {}, "Ready"),
        ({"cap_nano": None, "spent_nano": 10**15}, {}, "Ready"),
        ({"level": 1}, {}, "Downgraded"),
        (SPENT, {}, "Exceeded"),
        (SPENT | {"level": 2}, {}, "Exceeded"),
        ({"cap_nano": 0, "spent_nano": 0}, {}, "Exceeded"),
        ({"awaiting_approval": True}, {}, "AwaitingApproval"),
        (SPENT | {"awaiting_approval": True}, {}, "AwaitingApproval"),
        ({}, {"gateway": AWAY}, "Pending"),
        (SPENT, {"gateway": AWAY}, "Pending"),
        ({}, {"root": STALLING}, "Failed"),
        ({}, {"gateway": {"missing_keys": {"requesty": "no file"}}}, "Failed"),
        ({}, {"root": FATAL}, "Failed"),
        (SPENT, {"root": FATAL}, "Failed"),
        ({}, {"root": STALLING, "gateway": AWAY}, "Failed"),
        (SPENT, {"root": STALLING}, "Exceeded"),
        (SPENT, {"gateway": {"ledger_problem": "Connection refused"}}, "Failed"),
    ],
)
def test_the_phase_is_what_matters_most(
    figures: dict[str, Any], around: dict[str, Any], phase: str
) -> None:
    assert status_of(situation(balance(**figures), **around))["phase"] == phase


def test_a_budget_whose_balance_is_not_known_yet_is_pending() -> None:
    status = status_of(situation())
    assert status["phase"] == "Pending"
    for kind in ("WithinBudget", "Downgraded"):
        said = condition(status, kind)
        assert said == ("Unknown", "GatewayUnreachable", "No balance is known yet.")
    assert "spent" not in status


SILENT = {"gateway": AWAY}
BEHIND = {"gateway": {"config_generation": 1}}
UNHEARD = {"gateway": {"config_generation": None}}
KEYLESS = {"gateway": {"missing_keys": {"requesty": "ask Vault", "unused": "no file"}}}
OUTAGE = {"gateway": {"ledger_problem": "Connection refused"}}
WAITING = SPENT | {"awaiting_approval": True}


@pytest.mark.parametrize(
    ("figures", "around", "kind", "expected", "said"),
    [
        ({}, {}, "Ready", "True Reconciled", "admitted against the budget"),
        ({}, {}, "LedgerAvailable", "True LedgerConnected", ""),
        ({}, {}, "WithinBudget", "True UnderCap", ""),
        ({}, {}, "Downgraded", "False NoDowngrade", ""),
        # A spent budget does its work.
        (SPENT, {}, "Ready", "True Reconciled", ""),
        (SPENT, {}, "WithinBudget", "False CapReached", "The cap of 500.00 USD"),
        (SPENT, {}, "WithinBudget", "False CapReached", "2026-12-01T00:00:00-05:00"),
        (WAITING, {}, "WithinBudget", "False AwaitingApproval", "approved-period=2026-11"),
        ({"level": 1}, {}, "Downgraded", "True ThresholdCrossed", "dearer model than gpt-4o-mini"),
        ({}, {}, "Ready", "True Reconciled", "Calls are admitted"),
        ({}, {"child": {"consumers": []}}, "Ready", "True Reconciled", "spec.consumers"),
        ({}, SILENT, "Ready", "False GatewayUnreachable", "connection refused"),
        ({}, SILENT, "Reconciling", "True GatewayUnreachable", "connection refused"),
        ({}, SILENT, "LedgerAvailable", "Unknown GatewayUnreachable", "connection refused"),
        ({}, BEHIND, "Ready", "False ConfigNotAcknowledged", "not taken configuration"),
        ({}, UNHEARD, "Reconciling", "True ConfigNotAcknowledged", "not taken configuration"),
        ({}, KEYLESS, "Ready", "False SecretNotFound", "no key for provider requesty:"),
        ({}, KEYLESS, "Stalled", "True SecretNotFound", "ask Vault"),
        ({}, {"root": STALLING}, "Ready", "False SecretNotFound", "create it"),
        ({}, {"root": STALLING}, "Stalled", "True SecretNotFound", "create it"),
        ({}, {"root": FATAL}, "Stalled", "True InvalidSpec", "write an IANA name"),
        ({}, OUTAGE, "Ready", "False LedgerUnavailable", "Calls are refused: Connection refused."),
        ({}, OUTAGE, "Reconciling", "True LedgerUnavailable", "Connection refused"),
        ({}, OUTAGE, "LedgerAvailable", "False LedgerUnavailable", "Connection refused"),
    ],
)
def test_a_condition_has_its_reason_and_says_what_to_do(
    figures: dict[str, Any], around: dict[str, Any], kind: str, expected: str, said: str
) -> None:
    found = condition(status_of(situation(balance(**figures), **around)), kind)
    assert found is not None
    assert " ".join(found[:2]) == expected
    assert said in found[2]


def test_a_healthy_budget_is_neither_reconciling_nor_stalled() -> None:
    status = status_of(situation(balance()))
    types = [one["type"] for one in status["conditions"]]
    assert types == ["Ready", "LedgerAvailable", "WithinBudget", "Downgraded"]


def test_targets_that_do_not_consent_stall_and_those_that_are_missing_are_told() -> None:
    status = status_of(situation(balance()), targets=REFUSED)
    assert condition(status, "Stalled") == ("True", "TargetNotConsenting", REFUSED.refused[0])
    report = TargetReport(unmatched=["No Deployment carries the labels app=x."])
    downgraded = condition(status_of(situation(balance(level=1)), targets=report), "Downgraded")
    assert downgraded is not None
    assert downgraded[2].endswith(report.unmatched[0])


def test_changed_targets_are_listed() -> None:
    report = TargetReport(changed=[ChangedTarget(namespace="a", name="b", model="phi-4-14b")])
    status = status_of(situation(balance(level=1)), targets=report)
    assert status["changedTargets"] == [{"namespace": "a", "name": "b", "model": "phi-4-14b"}]


def test_a_finding_about_one_budget_leaves_the_other_ready() -> None:
    made = situation(balance(), balance(CHILD), child={"budget": {"borrowing": {"limit": "1"}}})
    assert status_of(made, CHILD)["phase"] == "Failed"
    assert status_of(made, ROOT)["phase"] == "Ready"


def test_a_key_that_lacks_concerns_those_who_chose_its_provider() -> None:
    made = situation(balance(), balance(CHILD), gateway={"missing_keys": {"requesty": "no file"}})
    assert status_of(made, CHILD)["phase"] == "Ready"
    assert status_of(made, ROOT)["phase"] == "Failed"


def test_a_message_is_never_longer_than_the_api_allows() -> None:
    report = TargetReport(refused=["x" * 3000])
    found = condition(status_of(situation(balance()), targets=report), "Ready")
    assert found is not None
    assert len(found[2]) == 2048


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    before = status_of(situation(balance()))
    for one in before["conditions"]:
        one["lastTransitionTime"] = EARLY
    after = status_of(situation(balance(**SPENT)), before=before)
    times = {one["type"]: one["lastTransitionTime"] for one in after["conditions"]}
    assert {kind for kind, time in times.items() if time == NOW} == {"WithinBudget"}


def test_a_rejected_budget_has_failed_and_says_why() -> None:
    status = rejected_status(4, Reason.API_ERROR, "y" * 3000, {}, NOW)
    assert (status["phase"], status["observedGeneration"]) == ("Failed", 4)
    assert condition(status, "Ready") == ("False", "ApiError", "y" * 2048)
    assert condition(status, "Stalled") == ("True", "ApiError", "y" * 2048)
    later = rejected_status(5, Reason.PARENT_REFUSES, "add it", status, EARLY)
    assert condition(later, "Ready") == ("False", "ParentRefuses", "add it")


def test_a_sound_provider_is_ready_and_counts_its_priced_models() -> None:
    world = situation().world
    provider = world.providers["openrouter"]
    assert provider_problem(provider, (), {"requesty": "no file"}) is None
    status = provider_status(provider, None, world.now, {}, NOW)
    assert (status["models"], status["observedGeneration"]) == (1, 1)
    assert condition(status, "Ready") == ("True", "Reconciled", "")
    assert condition(status, "Stalled") is None


@pytest.mark.parametrize(
    ("found", "missing", "expected", "said"),
    [
        ((FAULT,), {}, "SecretNotConsenting", "label it"),
        ((FAULT, replace(FAULT, reason=Reason.MODEL_UNPRICED)), {}, "SecretNotConsenting", ""),
        ((FAULT,), {"openrouter": "no file"}, "SecretNotConsenting", "label it"),
        (
            (),
            {"openrouter": "no file"},
            "SecretNotFound",
            "no key for provider openrouter: no file.",
        ),
    ],
)
def test_a_provider_tells_its_first_fault(
    found: tuple[Finding, ...], missing: dict[str, str], expected: str, said: str
) -> None:
    world = situation().world
    provider = world.providers["openrouter"]
    problem = provider_problem(provider, found, missing)
    status = provider_status(provider, problem, world.now, {}, NOW)
    for kind, truth in (("Ready", "False"), ("Stalled", "True")):
        shown = condition(status, kind)
        assert shown is not None
        assert shown[:2] == (truth, expected)
        assert said in shown[2]


def test_a_provider_that_cannot_be_read_has_no_models() -> None:
    world = situation().world
    provider = replace(world.providers["openrouter"], spec=None, error="spec.endpoint: no URL")
    assert provider_status(provider, None, world.now, {}, NOW)["models"] == 0


def test_a_status_is_applied_to_its_resource_alone() -> None:
    assert status_manifest("LLMBudget", "a", "b", {"phase": "Ready"}) == {
        "apiVersion": "llmbudget.io/v1alpha1",
        "kind": "LLMBudget",
        "metadata": {"namespace": "a", "name": "b"},
        "status": {"phase": "Ready"},
    }


def test_a_child_is_not_ready_while_its_root_cannot_be_rendered() -> None:
    ready = condition(status_of(situation(balance(CHILD), root=FATAL), CHILD), "Ready")
    assert ready is not None
    assert ready[0] == "False"
