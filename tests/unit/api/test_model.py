"""Shared field types: what pydantic refuses when the operator reads a resource again."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llmbudget.api.budget import BudgetSpec
from llmbudget.api.meta import account_name, operator_audience
from llmbudget.api.model import milliseconds, months, per_minute


@pytest.mark.parametrize(
    ("text", "expected"), [("500ms", 500), ("5s", 5000), ("10m", 600_000), ("1h", 3_600_000)]
)
def test_durations(text: str, expected: int) -> None:
    assert milliseconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100/min", 100), ("2/s", 120), ("600/h", 10), ("5/h", 1), ("0/min", 0), ("0/h", 0)],
)
def test_rates(text: str, expected: int) -> None:
    assert per_minute(text) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"budget": {"monthlyCap": "-1"}},
        {"budget": {"monthlyCap": "1e999999999"}},
        {"budget": {"monthlyCap": 100.0}},
        {"budget": {"monthlyCap": "100\n"}},
        {"budget": {"alertThresholds": [{"percentage": 0, "action": "notify_admin"}]}},
        {"budget": {"alertThresholds": [{"percentage": 101, "action": "notify_admin"}]}},
        {"budget": {"alertThresholds": [{"percentage": 80, "action": "shout"}]}},
        {"budget": {"montlyCap": "1"}},
        {"profile": "startup"},
        {"providers": [{"name": "Open Router"}]},
        {"deployment": {"replicas": 0}},
        {"monitoring": {"posthog": {"sampleRate": "1.5"}}},
    ],
)
def test_what_the_api_server_refuses_is_refused_here_too(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BudgetSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("team", True),
        ("service.cilium.io/global", True),
        ("cloud.example/Load_Balancer.type", True),
        ("", False),
        ("/global", False),
        ("service.cilium.io/", False),
        ("Service.Cilium.io/global", False),
        ("a/b/c", False),
        ("global\n", False),
        ("x" * 64, False),
    ],
)
def test_names_of_annotations(name: str, taken: bool) -> None:
    distribution = {"serviceAnnotations": {name: "true"}}
    if taken:
        BudgetSpec.model_validate({"globalDistribution": distribution})
        return
    with pytest.raises(ValidationError):
        BudgetSpec.model_validate({"globalDistribution": distribution})


def test_names() -> None:
    assert account_name("llm-platform", "team-a") == "llm-platform/team-a"
    assert operator_audience("llm-platform/team-a") == "llmbudget:llm-platform/team-a"


@pytest.mark.parametrize(("text", "expected"), [("1mo", 1), ("24mo", 24), ("2y", 24)])
def test_months(text: str, expected: int) -> None:
    assert months(text) == expected
