"""The admission policies and the RBAC of the manifests, on the real API server.

The operator is impersonated: user name and groups of its ServiceAccount, nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from llmbudget.api.meta import (
    ANNOTATION_ALLOW_BUDGET,
    ANNOTATION_APPROVED_PERIOD,
    ANNOTATION_MODEL_ENV,
    ANNOTATION_ORIGINAL_ENV,
)

Kubectl = Callable[..., str]
Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
OPERATOR = "system:serviceaccount:llmbudget-system:llmbudget-operator"
AS_OPERATOR = (
    f"--as={OPERATOR}",
    "--as-group=system:serviceaccounts",
    "--as-group=system:serviceaccounts:llmbudget-system",
    "--as-group=system:authenticated",
)
SOMEONE = ("--as=someone", "--as-group=system:authenticated")

pytestmark = pytest.mark.cluster


def answer(kubectl: Kubectl, *arguments: str, stdin: str | None = None) -> str:
    """What the API server says: "accepted", or its refusal."""
    try:
        kubectl(*arguments, stdin=stdin)
    except Exception as refusal:
        return str(refusal)
    return "accepted"


def budget(**annotations: str) -> str:
    metadata = {"name": "team", "annotations": annotations}
    spec = {"providers": [{"name": "openrouter"}]}
    return json.dumps(
        {
            "apiVersion": "llmbudget.io/v1alpha1",
            "kind": "LLMBudget",
            "metadata": metadata,
            "spec": spec,
        }
    )


def deployment() -> Manifest:
    """A Deployment that consents."""
    container = {
        "name": "main",
        "image": "app:1",
        "env": [{"name": "OTHER", "value": "x"}, {"name": "LLM_MODEL", "value": "dear"}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "app",
            "labels": {"team": "a"},
            "annotations": {
                ANNOTATION_ALLOW_BUDGET: "llm-platform/team-a",
                ANNOTATION_MODEL_ENV: "LLM_MODEL",
                "note": "theirs",
            },
        },
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "app"}},
            "template": {
                "metadata": {"labels": {"app": "app"}},
                "spec": {"containers": [container, {"name": "sidecar", "image": "side:1"}]},
            },
        },
    }


@pytest.fixture(scope="module")
def installed(kubectl: Kubectl) -> None:
    """The manifests, with the policies in force."""
    arguments = ("apply", "--server-side", "-l", "!llmbudget.io/runs-in-cluster")
    kubectl(*arguments, "-k", str(ROOT / "manifests" / "default"))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    create = ("create", "--dry-run=server", "-f", "-")
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "probe"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:auth-delegator",
        },
    }
    deadline = time.monotonic() + 60
    while "llmbudget-operator-bindings" not in answer(
        kubectl, *create, *AS_OPERATOR, stdin=json.dumps(binding)
    ):
        assert time.monotonic() < deadline, "the admission policies did not come into force"


@pytest.fixture
def place(kubectl: Kubectl, installed: None, namespace: str) -> str:
    """A namespace whose root budgets the operator manages."""
    kubectl("-n", namespace, "apply", "-k", str(ROOT / "manifests" / "namespace"))
    return namespace


@pytest.fixture
def target(kubectl: Kubectl, installed: None, namespace: str) -> str:
    """A namespace with a consenting Deployment, where the operator manages nothing."""
    kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(deployment()))
    return namespace


def patch(kubectl: Kubectl, namespace: str, *operations: Manifest) -> str:
    arguments = ("-n", namespace, "patch", "deployment", "app", "--type=json")
    return answer(kubectl, *arguments, "-p", json.dumps(operations), *AS_OPERATOR)


ENV = "/spec/template/spec/containers/0/env/1"
MODEL = {"op": "replace", "path": ENV, "value": {"name": "LLM_MODEL", "value": "cheap"}}
SECRET = {"name": "LLM_MODEL", "valueFrom": {"secretKeyRef": {"name": "any", "key": "k"}}}


def annotation(name: str) -> str:
    return "/metadata/annotations/" + name.replace("/", "~1")


REMEMBER = {"op": "add", "path": annotation(ANNOTATION_ORIGINAL_ENV), "value": "null"}


def test_a_consenting_target_is_moved_and_put_back(kubectl: Kubectl, target: str) -> None:
    assert patch(kubectl, target, MODEL, REMEMBER) == "accepted"
    forget = {"op": "remove", "path": annotation(ANNOTATION_ORIGINAL_ENV)}
    restore = {"op": "replace", "path": ENV, "value": SECRET}
    assert patch(kubectl, target, restore, forget) == "accepted"


def test_a_variable_is_added_and_removed(kubectl: Kubectl, target: str) -> None:
    path = "/spec/template/spec/containers/1/env"
    added = {"op": "add", "path": path, "value": [{"name": "LLM_MODEL", "value": "cheap"}]}
    assert patch(kubectl, target, added) == "accepted"
    assert patch(kubectl, target, {"op": "remove", "path": path}) == "accepted"


@pytest.mark.parametrize(
    ("operation", "refusal"),
    [
        ({"op": "replace", "path": "/spec/replicas", "value": 3}, "nothing of a target but"),
        ({"op": "add", "path": "/spec/paused", "value": True}, "nothing of a target but"),
        (
            {"op": "add", "path": "/spec/template/spec/hostNetwork", "value": True},
            "nothing of a target but",
        ),
        (
            {"op": "add", "path": "/spec/template/metadata/labels/x", "value": "y"},
            "nothing of a target but",
        ),
        (
            {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "evil"},
            "no variable of a target but the one",
        ),
        (
            {"op": "remove", "path": "/spec/template/spec/containers/1"},
            "no variable of a target but the one",
        ),
        (
            {"op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": "y"},
            "no variable of a target but the one",
        ),
        (
            {"op": "add", "path": ENV, "value": {"name": "LD_PRELOAD", "value": "x"}},
            "no variable of a target but the one",
        ),
        ({"op": "replace", "path": ENV, "value": SECRET}, "to a plain value only"),
        ({"op": "add", "path": "/metadata/labels/x", "value": "y"}, "no labels, owners"),
        ({"op": "add", "path": "/metadata/finalizers", "value": ["a.b/c"]}, "no labels, owners"),
        ({"op": "remove", "path": annotation("note")}, "no annotation of a target but its own"),
        (
            {"op": "remove", "path": annotation(ANNOTATION_ALLOW_BUDGET)},
            "no annotation of a target but its own",
        ),
        (
            {"op": "replace", "path": annotation(ANNOTATION_MODEL_ENV), "value": "OTHER"},
            "no annotation of a target but its own",
        ),
    ],
)
def test_the_operator_changes_nothing_else(
    kubectl: Kubectl, target: str, operation: Manifest, refusal: str
) -> None:
    assert refusal in patch(kubectl, target, operation)


@pytest.mark.parametrize("missing", [ANNOTATION_ALLOW_BUDGET, ANNOTATION_MODEL_ENV])
def test_a_deployment_without_consent_is_refused(
    kubectl: Kubectl, target: str, missing: str
) -> None:
    kubectl("-n", target, "annotate", "deployment", "app", f"{missing}-")
    assert "does not consent" in patch(kubectl, target, MODEL)
    consent = {"op": "add", "path": annotation(missing), "value": "LLM_MODEL"}
    assert "does not consent" in patch(kubectl, target, MODEL, consent)


def test_anyone_else_is_not_concerned(kubectl: Kubectl, target: str) -> None:
    arguments = ("-n", target, "scale", "deployment", "app", "--replicas=1")
    assert answer(kubectl, *arguments) == "accepted"


def owned(name: str, uid: str) -> Manifest:
    """A gateway's Deployment, as the operator renders it."""
    manifest = deepcopy(deployment())
    manifest["metadata"] = {
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": "llmbudget"},
        "ownerReferences": [
            {
                "apiVersion": "llmbudget.io/v1alpha1",
                "kind": "LLMBudget",
                "name": "team",
                "uid": uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    return manifest


def test_owned_deployments_are_managed(kubectl: Kubectl, place: str) -> None:
    kubectl("-n", place, "create", "-f", "-", stdin=budget())
    uid = kubectl("-n", place, "get", "llmb", "team", "-o", "jsonpath={.metadata.uid}")
    apply = ("-n", place, "apply", "--server-side", "--force-conflicts", "-f", "-", *AS_OPERATOR)
    manifest = owned("gateway", uid)
    assert answer(kubectl, *apply, stdin=json.dumps(manifest)) == "accepted"
    manifest["spec"]["replicas"] = 2
    assert answer(kubectl, *apply, stdin=json.dumps(manifest)) == "accepted"
    delete = ("-n", place, "delete", "deployment", "gateway", "--wait=false", *AS_OPERATOR)
    assert answer(kubectl, *delete) == "accepted"


def test_other_deployments_are_neither_created_nor_deleted(kubectl: Kubectl, place: str) -> None:
    text = json.dumps(deployment())
    create = ("-n", place, "create", "-f", "-")
    refusal = "creates and deletes only Deployments that a budget owns"
    assert refusal in answer(kubectl, *create, *AS_OPERATOR, stdin=text)
    kubectl(*create, stdin=text)
    delete = ("-n", place, "delete", "deployment", "app", *AS_OPERATOR)
    assert refusal in answer(kubectl, *delete)


def binding(role: str, **labels: str) -> str:
    return json.dumps(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "llmbudget-test-binding", "labels": labels},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role,
            },
            "subjects": [{"kind": "ServiceAccount", "name": "gateway", "namespace": "any"}],
        }
    )


def test_only_the_auth_delegator_is_bound(kubectl: Kubectl, installed: None) -> None:
    ours = {"app.kubernetes.io/managed-by": "llmbudget"}
    create = ("create", "--dry-run=server", "-f", "-", *AS_OPERATOR)
    good = answer(kubectl, *create, stdin=binding("system:auth-delegator", **ours))
    assert good == "accepted"
    unlabelled = answer(kubectl, *create, stdin=binding("system:auth-delegator"))
    assert "that carry its label" in unlabelled
    admin = answer(kubectl, *create, stdin=binding("cluster-admin", **ours))
    assert "forbidden" in admin
    delete = answer(
        kubectl, "delete", "--dry-run=server", "clusterrolebinding", "cluster-admin", *AS_OPERATOR
    )
    assert "that carry its label" in delete


OWNER = {"apiVersion": "llmbudget.io/v1alpha1", "kind": "LLMBudget", "name": "team", "uid": "1"}


def secret(name: str, *, owned: bool = True, **labels: str) -> str:
    metadata = {"name": name, "labels": labels, "ownerReferences": [OWNER] if owned else []}
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})


def test_only_secrets_of_budgets_are_written(kubectl: Kubectl, place: str) -> None:
    ours = {"app.kubernetes.io/managed-by": "llmbudget"}
    where = ("-n", place, "--dry-run=server", *AS_OPERATOR)
    kubectl("-n", place, "create", "secret", "generic", "openai-key", "--from-literal=key=sk")
    label = ("-p", '{"metadata":{"labels":{"app.kubernetes.io/managed-by":"llmbudget"}}}')
    for change in (("patch", "secret", "openai-key", *label), ("delete", "secret", "openai-key")):
        assert "only Secrets that it made for a budget" in answer(kubectl, *change, *where)
    made = answer(kubectl, "create", "-f", "-", *where, stdin=secret("team-gateway-tls", **ours))
    assert made == "accepted"
    for not_ours in (secret("a", owned=False, **ours), secret("a")):
        refused = answer(kubectl, "create", "-f", "-", *where, stdin=not_ours)
        assert "only Secrets that a budget owns, with its label" in refused
    kubectl("-n", place, "create", "-f", "-", stdin=secret("disowned", owned=False, **ours))
    owners = {"metadata": {"ownerReferences": [OWNER]}}
    put_right = ("patch", "secret", "disowned", "--type=merge", "-p", json.dumps(owners))
    assert answer(kubectl, *put_right, *where) == "accepted"


def test_the_operator_is_held_in_another_namespace_too(kubectl: Kubectl, installed: None) -> None:
    """Even where it was given every right: an overlay may install it anywhere."""
    name = "operator-of-another-namespace"
    account = "--serviceaccount=llm-operators:llmbudget-operator"
    kubectl("create", "clusterrolebinding", name, "--clusterrole=cluster-admin", account)
    try:
        user = "--as=system:serviceaccount:llm-operators:llmbudget-operator"
        refused = answer(
            kubectl,
            *("create", "--dry-run=server", "-f", "-", user),
            stdin=binding("cluster-admin", **{"app.kubernetes.io/managed-by": "llmbudget"}),
        )
    finally:
        kubectl("delete", "clusterrolebinding", name)
    assert "the operator manages only ClusterRoleBindings" in refused


@pytest.fixture
def editor(kubectl: Kubectl, installed: None, namespace: str) -> str:
    """A namespace in which someone may do anything with budgets but approve them."""
    verbs = "--verb=get,list,create,update,patch,delete"
    kubectl("-n", namespace, "create", "role", "editor", verbs, "--resource=llmbudgets")
    kubectl("-n", namespace, "create", "rolebinding", "editor", "--role=editor", "--user=someone")
    return namespace


APPROVAL = f"{ANNOTATION_APPROVED_PERIOD}=2026-11"
NOT_APPROVER = "only by someone with the RBAC verb approve"


def test_an_editor_may_not_approve(kubectl: Kubectl, editor: str) -> None:
    create = ("-n", editor, "create", "-f", "-", *SOMEONE)
    approved = budget(**{ANNOTATION_APPROVED_PERIOD: "2026-11"})
    assert NOT_APPROVER in answer(kubectl, *create, stdin=approved)
    assert answer(kubectl, *create, stdin=budget(note="mine")) == "accepted"
    annotate = ("-n", editor, "annotate", "--overwrite", "llmb", "team")
    assert answer(kubectl, *annotate, "note=other", *SOMEONE) == "accepted"
    assert NOT_APPROVER in answer(kubectl, *annotate, APPROVAL, *SOMEONE)
    kubectl(*annotate, APPROVAL)
    assert answer(kubectl, *annotate, "note=again", *SOMEONE) == "accepted"
    later = f"{ANNOTATION_APPROVED_PERIOD}=2026-12"
    assert NOT_APPROVER in answer(kubectl, *annotate, later, *SOMEONE)
    assert NOT_APPROVER in answer(kubectl, *annotate, f"{ANNOTATION_APPROVED_PERIOD}-", *SOMEONE)


def test_an_approver_may(kubectl: Kubectl, editor: str) -> None:
    kubectl("-n", editor, "create", "-f", "-", stdin=budget())
    grant = ("create", "rolebinding", "approver", "--clusterrole=llmbudget-approver")
    kubectl("-n", editor, *grant, "--user=someone")
    annotate = ("-n", editor, "annotate", "llmb", "team", APPROVAL, *SOMEONE)
    assert answer(kubectl, *annotate) == "accepted"


def test_the_operator_may_not_approve(kubectl: Kubectl, editor: str) -> None:
    kubectl("-n", editor, "create", "-f", "-", stdin=budget())
    annotate = ("-n", editor, "annotate", "llmb", "team", *AS_OPERATOR)
    assert NOT_APPROVER in answer(kubectl, *annotate, APPROVAL)
    assert answer(kubectl, *annotate, "note=operator") == "accepted"


def can(kubectl: Kubectl, verb: str, resource: str, *where: str) -> bool:
    """Whether the operator may."""
    kind, _, part = resource.partition(" ")
    question = ("auth", "can-i", verb, kind, f"--subresource={part}", *where, *AS_OPERATOR)
    return answer(kubectl, *question) == "accepted"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "secrets"),
        ("watch", "secrets"),
        ("delete", "persistentvolumeclaims"),
        ("escalate", "roles.rbac.authorization.k8s.io"),
        ("bind", "clusterroles.rbac.authorization.k8s.io"),
        ("approve", "llmbudgets.llmbudget.io"),
        ("create", "llmbudgets.llmbudget.io"),
        ("create", "pods"),
        ("create", "pods exec"),
        ("create", "serviceaccounts token"),
        ("patch", "deployments.apps scale"),
    ],
)
def test_the_operator_may_not(kubectl: Kubectl, place: str, verb: str, resource: str) -> None:
    assert not can(kubectl, verb, resource, "-n", place)


@pytest.mark.parametrize("resource", ["secrets", "configmaps", "roles.rbac.authorization.k8s.io"])
def test_elsewhere_the_operator_may_read_nothing(
    kubectl: Kubectl, target: str, resource: str
) -> None:
    assert not can(kubectl, "get", resource, "-n", target)


def test_a_gateway_gets_what_the_operator_has(kubectl: Kubectl, place: str) -> None:
    create = ("-n", place, "create", "--dry-run=server", "role", "gateway", *AS_OPERATOR)
    one = ("--verb=get,list,watch", "--resource=configmaps", "--resource-name=team-gateway")
    assert answer(kubectl, *create, *one) == "accepted"
    more = ("--verb=list", "--resource=secrets")
    assert "attempting to grant RBAC permissions not currently held" in answer(
        kubectl, *create, *more
    )


def test_no_rule_has_a_wildcard(kubectl: Kubectl) -> None:
    text = kubectl("kustomize", str(ROOT / "manifests" / "default"))
    assert '"*"' not in text
    assert "'*'" not in text
