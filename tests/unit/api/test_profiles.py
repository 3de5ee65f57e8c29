"""The profiles are the 371OS guide's three files, field by field, and what is written wins."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from llmbudget.api.budget import BudgetSpec, Profile
from llmbudget.api.profiles import PROFILES, effective

GUIDE = {
    Profile.SMB: """
deployment:
  replicas: 1
  resources:
    requests:
      memory: "2Gi"
      cpu: "1000m"
    limits:
      memory: "4Gi"
      cpu: "2000m"
budget:
  monthly_cap: 100.00
  alert_thresholds:
    - percentage: 80
      action: "notify_admin"
    - percentage: 95
      action: "downgrade_models"
monitoring:
  posthog:
    enabled: true
    sample_rate: 0.5
""",
    Profile.ENTERPRISE: """
deployment:
  replicas: 5
  resources:
    requests:
      memory: "4Gi"
      cpu: "2000m"
    limits:
      memory: "8Gi"
      cpu: "4000m"
high_availability:
  enabled: true
  auto_scaling:
    min_replicas: 3
    max_replicas: 10
    cpu_threshold: 70
budget:
  monthly_cap: 5000.00
  alert_thresholds:
    - percentage: 75
      action: "notify_finance_team"
    - percentage: 90
      action: "notify_executives"
    - percentage: 95
      action: "enforce_strict_downgrade"
monitoring:
  posthog:
    enabled: true
    sample_rate: 1.0
  datadog:
    enabled: true
    api_key: "${DATADOG_API_KEY}"
""",
    Profile.GLOBAL: """
deployment:
  replicas: 15
  resources:
    requests:
      memory: "8Gi"
      cpu: "4000m"
    limits:
      memory: "16Gi"
      cpu: "8000m"
global_distribution:
  regions:
    - us-east
    - us-west
    - eu-central
    - ap-southeast
  traffic_manager: "global-load-balancer"
budget:
  monthly_cap: 25000.00
  alert_thresholds:
    - percentage: 70
      action: "regional_alert"
    - percentage: 85
      action: "cross_region_review"
    - percentage: 95
      action: "executive_intervention"
monitoring:
  posthog:
    enabled: true
    sample_rate: 0.8
  distributed_tracing:
    enabled: true
    collector: "jaeger-collector.global:14268"
""",
}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def ours(node: Any, key: str = "") -> Any:
    """Say the guide's YAML in our words: camelCase, decimals as strings, regions as objects."""
    if isinstance(node, dict):
        # The key itself is named by a Secret, never written into a resource.
        return {camel(k): ours(v, k) for k, v in node.items() if k != "api_key"}
    if key == "regions":
        return [{"name": name} for name in node]
    if isinstance(node, list):
        return [ours(each) for each in node]
    if key == "monthly_cap":
        return f"{node:.2f}"
    return str(node) if key == "sample_rate" else node


@pytest.mark.parametrize("profile", list(Profile))
def test_a_profile_is_the_guides_file(profile: Profile) -> None:
    assert PROFILES[profile] == ours(yaml.safe_load(GUIDE[profile]))


@pytest.mark.parametrize("profile", list(Profile))
def test_effective_values_contain_the_profile(profile: Profile) -> None:
    spec = effective(BudgetSpec(profile=profile)).model_dump(mode="json", by_alias=True)

    def contains(whole: Any, part: Any) -> bool:
        if isinstance(part, dict):
            return all(contains(whole[key], value) for key, value in part.items())
        if isinstance(part, list):
            pairs = zip(whole, part, strict=True)
            return all(contains(one, other) for one, other in pairs)
        return bool(whole == part)

    assert contains(spec, PROFILES[profile])


def spec(**fields: Any) -> BudgetSpec:
    return effective(BudgetSpec.model_validate(fields))


def test_what_is_written_wins_field_by_field() -> None:
    resolved = spec(
        profile="enterprise",
        budget={"monthlyCap": "7.00"},
        deployment={"replicas": 2, "resources": {"limits": {"memory": "1Gi"}}},
        highAvailability={"autoScaling": {"maxReplicas": 4}},
        monitoring={"datadog": {"enabled": False}},
    )
    assert resolved.budget.monthly_cap == "7.00"
    assert len(resolved.budget.alert_thresholds) == 3
    assert resolved.deployment.replicas == 2
    assert resolved.deployment.resources.limits.memory == "1Gi"
    assert resolved.deployment.resources.limits.cpu == "4000m"
    assert resolved.deployment.resources.requests.memory == "4Gi"
    assert resolved.high_availability.enabled
    assert resolved.high_availability.auto_scaling.min_replicas == 3
    assert resolved.high_availability.auto_scaling.max_replicas == 4
    assert not resolved.monitoring.datadog.enabled
    assert resolved.monitoring.posthog.sample_rate == "1.0"


def test_lists_are_replaced_whole() -> None:
    thresholds = [{"percentage": 50, "action": "notify_admin"}]
    assert (
        len(spec(profile="smb", budget={"alertThresholds": thresholds}).budget.alert_thresholds)
        == 1
    )
    assert not spec(profile="smb", budget={"alertThresholds": []}).budget.alert_thresholds
    assert not spec(
        profile="global", globalDistribution={"regions": []}
    ).global_distribution.regions


def test_a_value_equal_to_the_built_in_one_still_wins() -> None:
    assert spec(profile="enterprise", deployment={"replicas": 1}).deployment.replicas == 1
    off = spec(profile="enterprise", highAvailability={"enabled": False})
    assert not off.high_availability.enabled


def test_caps() -> None:
    assert spec().budget.monthly_cap == "20.00"
    assert spec(profile="smb").budget.monthly_cap == "100.00"
    assert spec(budget={"monthlyCap": "0"}).budget.monthly_cap == "0"
    assert spec(parentRef={"name": "org"}).budget.monthly_cap is None
    assert spec(parentRef={"name": "org"}, profile="smb").budget.monthly_cap == "100.00"


def test_without_a_profile_nothing_is_sent_to_others() -> None:
    monitoring = spec().monitoring
    assert not monitoring.posthog.enabled
    assert not monitoring.datadog.enabled
    assert not monitoring.distributed_tracing.enabled


@pytest.mark.parametrize("profile", [None, *Profile])
def test_resolving_twice_changes_nothing(profile: Profile | None) -> None:
    once = effective(BudgetSpec(profile=profile))
    assert effective(once) == once
