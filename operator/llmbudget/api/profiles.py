"""The three production files of the 371OS guide as defaults, and how effective values come about.

What the user wrote wins, then the profile, then the built-in defaults of the models. Objects are
merged field by field, lists are replaced whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmbudget.api.budget import BudgetSpec, Profile
from llmbudget.api.meta import DEFAULT_MONTHLY_CAP

PROFILES: Final[Mapping[Profile, Mapping[str, Any]]] = {
    Profile.SMB: {
        "deployment": {
            "replicas": 1,
            "resources": {
                "requests": {"memory": "2Gi", "cpu": "1000m"},
                "limits": {"memory": "4Gi", "cpu": "2000m"},
            },
        },
        "budget": {
            "monthlyCap": "100.00",
            "alertThresholds": [
                {"percentage": 80, "action": "notify_admin"},
                {"percentage": 95, "action": "downgrade_models"},
            ],
        },
        "monitoring": {"posthog": {"enabled": True, "sampleRate": "0.5"}},
    },
    Profile.ENTERPRISE: {
        "deployment": {
            "replicas": 5,
            "resources": {
                "requests": {"memory": "4Gi", "cpu": "2000m"},
                "limits": {"memory": "8Gi", "cpu": "4000m"},
            },
        },
        "highAvailability": {
            "enabled": True,
            "autoScaling": {"minReplicas": 3, "maxReplicas": 10, "cpuThreshold": 70},
        },
        "budget": {
            "monthlyCap": "5000.00",
            "alertThresholds": [
                {"percentage": 75, "action": "notify_finance_team"},
                {"percentage": 90, "action": "notify_executives"},
                {"percentage": 95, "action": "enforce_strict_downgrade"},
            ],
        },
        "monitoring": {
            "posthog": {"enabled": True, "sampleRate": "1.0"},
            "datadog": {"enabled": True},
        },
    },
    Profile.GLOBAL: {
        "deployment": {
            "replicas": 15,
            "resources": {
                "requests": {"memory": "8Gi", "cpu": "4000m"},
                "limits": {"memory": "16Gi", "cpu": "8000m"},
            },
        },
        "globalDistribution": {
            "regions": [
                {"name": "us-east"},
                {"name": "us-west"},
                {"name": "eu-central"},
                {"name": "ap-southeast"},
            ],
            "trafficManager": "global-load-balancer",
        },
        "budget": {
            "monthlyCap": "25000.00",
            "alertThresholds": [
                {"percentage": 70, "action": "regional_alert"},
                {"percentage": 85, "action": "cross_region_review"},
                {"percentage": 95, "action": "executive_intervention"},
            ],
        },
        "monitoring": {
            "posthog": {"enabled": True, "sampleRate": "0.8"},
            "distributedTracing": {
                "enabled": True,
                "collector": "jaeger-collector.global:14268",
            },
        },
    },
}


def effective(written: BudgetSpec) -> BudgetSpec:
    """Resolve a spec: the same type, with the profile's values where the user wrote none.

    A root's missing cap becomes 20.00 USD; a child's stays absent: only its ancestors' caps hold.
    """
    explicit = written.model_dump(mode="json", by_alias=True, exclude_unset=True)
    merged = _merge(PROFILES[written.profile] if written.profile else {}, explicit)
    if written.parent_ref is None:
        merged = _merge({"budget": {"monthlyCap": DEFAULT_MONTHLY_CAP}}, merged)
    return BudgetSpec.model_validate(merged)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merge(below, value) if nested else value  # type: ignore[arg-type]
    return merged
