"""The RBAC of the operator is enough: all that it writes, on the real API server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Kubectl = Callable[..., str]
Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
SYSTEM = "llmbudget-system"
AS_OPERATOR = (
    f"--as=system:serviceaccount:{SYSTEM}:llmbudget-operator",
    "--as-group=system:serviceaccounts",
    f"--as-group=system:serviceaccounts:{SYSTEM}",
    "--as-group=system:authenticated",
)
APPLY = ("apply", "--server-side", "--force-conflicts", "--field-manager=llmbudget", "-f", "-")

pytestmark = pytest.mark.cluster

RBAC = "rbac.authorization.k8s.io/v1"
NAMED = {"matchLabels": {"app": "gateway"}}
CHILDREN: list[Manifest] = [
    {"apiVersion": "v1", "kind": "ConfigMap", "data": {"gateway.json": "{}"}},
    {"apiVersion": "v1", "kind": "Secret", "stringData": {"K": "v"}},
    {"apiVersion": "v1", "kind": "ServiceAccount"},
    {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 8080}]}},
    {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "spec": {
            "accessModes": ["ReadWriteOncePod"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    },
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "spec": {"podSelector": NAMED, "policyTypes": ["Ingress", "Egress"]},
    },
    {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gateway"},
            "maxReplicas": 3,
        },
    },
    {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "spec": {"maxUnavailable": 1, "selector": NAMED},
    },
    {
        "apiVersion": RBAC,
        "kind": "Role",
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": ["gateway"],
                "verbs": ["get", "list", "watch"],
            }
        ],
    },
    {
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "gateway"},
        "subjects": [{"kind": "ServiceAccount", "name": "gateway"}],
    },
]


@pytest.fixture(scope="module")
def installed(kubectl: Kubectl) -> None:
    """The manifests."""
    arguments = ("apply", "--server-side", "-l", "!llmbudget.io/runs-in-cluster")
    kubectl(*arguments, "-k", str(ROOT / "manifests" / "default"))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")


@pytest.fixture
def owner(kubectl: Kubectl, installed: None, namespace: str) -> Manifest:
    """A root budget in a namespace that the operator manages, as an owner reference."""
    kubectl("-n", namespace, "apply", "-k", str(ROOT / "manifests" / "namespace"))
    budget = {
        "apiVersion": "llmbudget.io/v1alpha1",
        "kind": "LLMBudget",
        "metadata": {"name": "team"},
        "spec": {"providers": [{"name": "openrouter"}]},
    }
    kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(budget))
    uid = kubectl("-n", namespace, "get", "llmb", "team", "-o", "jsonpath={.metadata.uid}")
    return {
        "apiVersion": "llmbudget.io/v1alpha1",
        "kind": "LLMBudget",
        "name": "team",
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def test_children_are_written_corrected_and_removed(
    kubectl: Kubectl, owner: Manifest, namespace: str
) -> None:
    metadata = {
        "name": "gateway",
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "llmbudget"},
        "ownerReferences": [owner],
    }
    items = [{**child, "metadata": metadata} for child in CHILDREN]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    assert kubectl(*APPLY, *AS_OPERATOR, stdin=text).count("serverside-applied") == len(CHILDREN)
    assert kubectl(*APPLY, *AS_OPERATOR, stdin=text).count("serverside-applied") == len(CHILDREN)
    for child in CHILDREN:
        if child["kind"] != "PersistentVolumeClaim":
            delete = ("-n", namespace, "delete", child["kind"].lower(), "gateway", "--wait=false")
            kubectl(*delete, *AS_OPERATOR)


def test_the_budgets_status_and_finalizer(
    kubectl: Kubectl, owner: Manifest, namespace: str
) -> None:
    patch = ("-n", namespace, "patch", "llmb", "team", "--type=merge", *AS_OPERATOR, "-p")
    kubectl(*patch, json.dumps({"status": {"phase": "Pending"}}), "--subresource=status")
    for finalizers in (["llmbudget.io/restore-targets"], []):
        kubectl(*patch, json.dumps({"metadata": {"finalizers": finalizers}}))


def test_a_token_for_itself_alone(kubectl: Kubectl, installed: None) -> None:
    token = ("-n", SYSTEM, "create", "token", "llmbudget-operator", *AS_OPERATOR)
    assert kubectl(*token, "--audience=llmbudget:llm-platform/team-a").count(".") == 2
    with pytest.raises(Exception, match="forbidden"):
        kubectl("-n", SYSTEM, "create", "token", "default", *AS_OPERATOR)


def test_events_leases_and_the_api_servers_addresses(
    kubectl: Kubectl, owner: Manifest, namespace: str
) -> None:
    event = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "crossed", "namespace": namespace},
        "eventTime": "2026-11-20T10:00:00.000000Z",
        "reportingController": "llmbudget.io/operator",
        "reportingInstance": "operator",
        "action": "Notify",
        "reason": "ThresholdCrossed",
        "type": "Normal",
        "regarding": {"kind": "LLMBudget", "name": "team", "namespace": namespace},
    }
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "llmbudget-operator", "namespace": SYSTEM},
        "spec": {"holderIdentity": "one"},
    }
    kubectl("create", "-f", "-", *AS_OPERATOR, stdin=json.dumps(event))
    kubectl(*APPLY, *AS_OPERATOR, stdin=json.dumps(lease))
    kubectl("-n", SYSTEM, "delete", "lease", "llmbudget-operator")
    kubectl("-n", "default", "get", "endpointslices", *AS_OPERATOR)
    for resource in ("llmbudgets", "llmproviders", "deployments"):
        kubectl("get", resource, "--all-namespaces", *AS_OPERATOR)
