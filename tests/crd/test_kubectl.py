"""What kubectl shows of the resources: columns, explanations, names, the status apart."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

Kubectl = Callable[..., str]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("crds")]

BUDGET = {
    "apiVersion": "llmbudget.io/v1alpha1",
    "kind": "LLMBudget",
    "metadata": {"name": "team-a"},
    "spec": {"profile": "smb", "providers": [{"name": "openrouter"}]},
}
STATUS = {
    "observedGeneration": 1,
    "phase": "Downgraded",
    "period": {
        "name": "2026-11",
        "start": "2026-11-01T00:00:00+00:00",
        "end": "2026-12-01T00:00:00+00:00",
    },
    "cap": "100.00",
    "spent": "96.10",
    "held": "0.40",
    "remaining": "3.50",
    "spentPercentage": "96.1",
    "activeModel": "gpt-4o-mini",
    "downgradeLevel": 1,
    "thresholds": [{"percentage": 80, "action": "notify_admin", "firedAt": "2026-11-20T10:00:00Z"}],
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Reconciled",
            "message": "all is well",
            "lastTransitionTime": "2026-11-20T10:00:00Z",
        }
    ],
}


def patch_status(kubectl: Kubectl, namespace: str, status: object) -> None:
    patch = json.dumps({"status": status})
    arguments = ("-n", namespace, "patch", "llmb", "team-a", "--subresource=status")
    kubectl(*arguments, "--type=merge", "-p", patch)


def test_a_budget_in_a_line(kubectl: Kubectl, namespace: str) -> None:
    kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(BUDGET))
    patch_status(kubectl, namespace, STATUS)
    header, line = kubectl("-n", namespace, "get", "llmbudgets").splitlines()
    names = ["NAME", "CAP", "SPENT", "USED%", "MODEL", "PHASE", "READY", "AGE"]
    assert header.split() == names
    values = ["team-a", "100.00", "96.10", "96.1", "gpt-4o-mini", "Downgraded", "True"]
    assert line.split()[:-1] == values
    kubectl("-n", namespace, "wait", "--for=condition=Ready", "--timeout=5s", "llmb/team-a")
    assert "team-a" in kubectl("-n", namespace, "get", "llm")


def test_nothing_is_stored_that_was_not_written(kubectl: Kubectl, namespace: str) -> None:
    kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(BUDGET))
    stored = json.loads(kubectl("-n", namespace, "get", "llmb", "team-a", "-o", "json"))
    assert stored["spec"] == BUDGET["spec"]
    assert "status" not in stored


def test_the_status_is_apart(kubectl: Kubectl, namespace: str) -> None:
    text = json.dumps({**BUDGET, "status": STATUS})
    kubectl("-n", namespace, "create", "-f", "-", stdin=text)
    stored = json.loads(kubectl("-n", namespace, "get", "llmb", "team-a", "-o", "json"))
    assert "status" not in stored


def test_a_provider_in_a_line(kubectl: Kubectl, namespace: str) -> None:
    provider = {
        "apiVersion": "llmbudget.io/v1alpha1",
        "kind": "LLMProvider",
        "metadata": {"name": "openrouter"},
        "spec": {
            "protocol": "OpenAI",
            "endpoint": "https://openrouter.ai/api/v1",
            "credentials": {"secretKeyRef": {"name": "keys", "key": "K"}},
            "models": [{"name": "gpt-4o-mini"}],
        },
    }
    kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(provider))
    short = kubectl("-n", namespace, "get", "llmp").splitlines()[0]
    assert short.split() == ["NAME", "PROTOCOL", "MODELS", "READY", "AGE"]
    wide = kubectl("-n", namespace, "get", "llmp", "-o", "wide")
    assert "ENDPOINT" in wide
    assert "https://openrouter.ai/api/v1" in wide


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("llmbudget.spec.budget.alertThresholds", "Actions at shares of the cap"),
        ("llmbudget.spec.budget.alertThresholds.action", "What to do when it is crossed"),
        ("llmbudget.spec.budget.monthlyCap", "USD a month, as a decimal string."),
        ("llmbudget.status.spent", "USD spent."),
        ("llmprovider.spec.credentials", "Where the key comes from"),
    ],
)
def test_explain(kubectl: Kubectl, field: str, text: str) -> None:
    assert text in kubectl("explain", field)
