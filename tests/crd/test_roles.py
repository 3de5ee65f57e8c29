"""Who may do what, as the real API server's authorizer answers (SubjectAccessReview)."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Kubectl = Callable[..., str]

ROOT = Path(__file__).parents[2]
SYSTEM = "llmbudget-system"
OPERATOR = f"system:serviceaccount:{SYSTEM}:llmbudget-operator"
GROUPS = ["system:serviceaccounts", f"system:serviceaccounts:{SYSTEM}", "system:authenticated"]
OURS = "llmbudget.io"
RBAC = "rbac.authorization.k8s.io"

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def installed(kubectl: Kubectl) -> None:
    """The manifests."""
    arguments = ("apply", "--server-side", "-l", "!llmbudget.io/runs-in-cluster")
    kubectl(*arguments, "-k", str(ROOT / "manifests" / "default"))


def allowed(kubectl: Kubectl, user: str, namespace: str, asked: list[str]) -> list[str]:
    """Those of `VERB GROUP/RESOURCE[/SUBRESOURCE][:NAME]` that the user may; the core group is
    empty, and a colon of a name is written as a semicolon."""
    groups = GROUPS if user == OPERATOR else ["system:authenticated"]
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user,
                "groups": groups,
                "resourceAttributes": {"namespace": namespace} | attributes(one),
            },
        }
        for one in asked
    ]
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    says = """jsonpath={.status.allowed}{"\\n"}"""
    answers = kubectl("create", "-f", "-", "-o", says, stdin=everything).split()
    return [one for one, answer in zip(asked, answers, strict=True) if answer == "true"]


def attributes(asked: str) -> dict[str, str]:
    verb, what = asked.split(" ")
    what, _, name = what.partition(":")
    group, resource, *subresource = what.split("/")
    found = {"verb": verb, "group": group, "resource": resource, "name": name.replace(";", ":")}
    return found | {"subresource": "/".join(subresource)}


KINDS = ("llmbudgets", "llmproviders")
READ = [f"{verb} {OURS}/{kind}" for verb in ("get", "list", "watch") for kind in KINDS]
READ += [f"get {OURS}/{kind}/status" for kind in KINDS]
WRITE = [
    f"{verb} {OURS}/{kind}"
    for verb in ("create", "update", "patch", "delete", "deletecollection")
    for kind in KINDS
]
NEVER = [f"approve {OURS}/llmbudgets", *(f"patch {OURS}/{kind}/status" for kind in KINDS)]
PEOPLE = {
    "view": (READ, WRITE + NEVER),
    "edit": (READ + WRITE, NEVER),
    "admin": (READ + WRITE, NEVER),
    "llmbudget-view": (READ, [*WRITE, *NEVER, "get /secrets"]),
    "llmbudget-edit": (WRITE, [*NEVER, "get /secrets", "patch apps/deployments"]),
    "llmbudget-approver": (
        [f"approve {OURS}/llmbudgets", f"patch {OURS}/llmbudgets"],
        [f"create {OURS}/llmbudgets", f"patch {OURS}/llmproviders", "get /secrets"],
    ),
}


@pytest.mark.parametrize("role", PEOPLE)
def test_what_a_role_gives_to_people(role: str, kubectl: Kubectl, namespace: str) -> None:
    user = f"someone-{secrets.token_hex(4)}"
    grant = ("create", "rolebinding", "granted", f"--clusterrole={role}", f"--user={user}")
    kubectl(*grant, "-n", namespace)
    given, denied = PEOPLE[role]
    for _ in range(100):  # the aggregation controller fills view, edit and admin
        if allowed(kubectl, user, namespace, given) == given:
            break
        time.sleep(0.1)
    assert allowed(kubectl, user, namespace, given) == given
    assert allowed(kubectl, user, namespace, denied) == []
    assert allowed(kubectl, user, "kube-system", given) == []


EVERYWHERE = [
    *(f"{verb} {OURS}/{kind}" for verb in ("get", "list", "watch") for kind in KINDS),
    *(f"patch {OURS}/{kind}/status" for kind in KINDS),
    f"patch {OURS}/llmbudgets",
    f"update {OURS}/llmbudgets/finalizers",
    *(f"{verb} apps/deployments" for verb in ("get", "list", "watch", "patch")),
    "create events.k8s.io/events",
    *(f"{verb} {RBAC}/clusterrolebindings" for verb in ("get", "list", "create", "delete")),
    f"bind {RBAC}/clusterroles:system;auth-delegator",
]
NOWHERE = [
    *(f"{verb} /secrets" for verb in ("list", "watch", "deletecollection")),
    *(f"{verb} {OURS}/llmbudgets" for verb in ("create", "update", "delete", "approve")),
    *(f"{verb} {OURS}/llmproviders" for verb in ("create", "update", "patch", "delete")),
    *(f"{verb} /pods" for verb in ("get", "list", "watch", "create")),
    *("create /pods/exec", "get /pods/log", "get /nodes", "list /namespaces"),
    *(f"{verb} {RBAC}/clusterroles" for verb in ("create", "escalate", "bind")),
    *(f"{verb} {RBAC}/roles" for verb in ("escalate", "bind")),
    f"bind {RBAC}/clusterroles:cluster-admin",
    "delete /persistentvolumeclaims",
    "impersonate /users",
    "create /serviceaccounts/token",
]
WHERE_LET_IN = [
    *(f"{verb} /secrets" for verb in ("get", "create", "patch", "delete")),
    *(f"{verb} /configmaps" for verb in ("list", "watch", "create", "patch", "delete")),
    *(f"{verb} apps/deployments" for verb in ("create", "delete")),
    *(f"{verb} {RBAC}/rolebindings" for verb in ("create", "delete")),
    "create /persistentvolumeclaims",
]


def test_what_the_operator_may(kubectl: Kubectl, namespace: str) -> None:
    def may(where: str, asked: list[str]) -> list[str]:
        return allowed(kubectl, OPERATOR, where, asked)

    assert may(namespace, EVERYWHERE) == EVERYWHERE
    assert may(namespace, NOWHERE + WHERE_LET_IN) == []
    kubectl("-n", namespace, "apply", "-k", str(ROOT / "manifests" / "namespace"))
    assert may(namespace, WHERE_LET_IN) == WHERE_LET_IN
    assert may(namespace, NOWHERE) == []
    assert may(SYSTEM, NOWHERE + WHERE_LET_IN) == ["create /secrets"]
    authority = [f"{verb} /secrets:llmbudget-authority" for verb in ("get", "update")]
    assert may(SYSTEM, authority) == authority
    own = ["create /serviceaccounts/token:llmbudget-operator"]
    own += ["create coordination.k8s.io/leases"]
    own += [f"{verb} coordination.k8s.io/leases:llmbudget-operator" for verb in ("get", "patch")]
    assert may(SYSTEM, own) == own
    assert may(namespace, own) == []
    slices = ["list discovery.k8s.io/endpointslices"]
    assert may("default", slices) == slices
    assert may("kube-system", slices) == []
