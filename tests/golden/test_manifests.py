"""What is installed, file by file: a right that is added is seen in the diff.

`make golden` writes the files anew. The CRDs are left out: they are generated, and in the diff too.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.golden.test_rendered import rendered

from llmbudget.local import binaries
from llmbudget.local.release import kustomize
from llmbudget.local.stage import ROOT

HERE = Path(__file__).parent
FOLDERS = ("default", "monitoring", "namespace", "namespaced", "prerequisites")
Manifest = dict[str, Any]


def built(folder: str) -> list[Manifest]:
    """What kustomize makes of a folder, in an order that no version of it changes."""
    text = kustomize(binaries.find(lambda _: None).kubectl, folder)
    return sorted(yaml.safe_load_all(text), key=place)


def place(document: Manifest) -> tuple[str, ...]:
    """What it is called."""
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def rules(documents: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for document in documents:
        for rule in document.get("rules") or ():
            yield document["metadata"]["name"], rule


@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests(folder: str, request: pytest.FixtureRequest) -> None:
    golden = HERE / "manifests" / f"{folder}.yaml"
    documents = [one for one in built(folder) if one["kind"] != "CustomResourceDefinition"]
    now = yaml.safe_dump_all(documents, sort_keys=False, width=100)
    if request.config.getoption("--update-golden"):
        golden.write_text(now)
    assert golden.exists(), f"{golden} is missing: make golden writes it"
    assert now == golden.read_text(), f"{golden.name} differs: look at it, then make golden"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_rule_is_for_everything(folder: str) -> None:
    for name, rule in rules(built(folder)):
        if "nonResourceURLs" in rule:
            assert rule == {"nonResourceURLs": ["/metrics"], "verbs": ["get"]}
            continue
        for part in ("apiGroups", "resources", "verbs"):
            assert not any("*" in word for word in rule[part]), f"{name}: {rule}"
        assert not {"escalate", "impersonate"} & set(rule["verbs"]), f"{name}: {rule}"
        if "bind" in rule["verbs"]:
            assert rule["resourceNames"] == ["system:auth-delegator"]
        if "secrets" in rule["resources"]:
            assert not {"list", "watch", "deletecollection"} & set(rule["verbs"])


def test_what_holds_in_the_whole_cluster_is_bound_by_one_purpose_each() -> None:
    documents = built("default")
    bound = [one for one in documents if one["kind"] == "ClusterRoleBinding"]
    assert {one["roleRef"]["name"] for one in bound} == {
        "llmbudget-operator-resources",
        "llmbudget-operator-heartbeat",
        "llmbudget-operator-targets",
        "llmbudget-operator-events",
        "llmbudget-operator-token-review",
    }
    everywhere = {one["roleRef"]["name"] for one in bound}
    for name, rule in rules(documents):
        if name in everywhere:
            assert "secrets" not in rule["resources"]
            assert "pods" not in rule["resources"]


def test_without_rights_in_the_whole_cluster_there_are_the_same_in_one_namespace() -> None:
    """Rule by rule, but for what only a whole cluster has."""
    documents = built("namespaced")
    assert not [one["kind"] for one in documents if one["kind"].startswith("Cluster")]
    assert {one["metadata"]["namespace"] for one in documents} == {"llmbudget-team"}
    here = {name: rule for name, rule in gathered(documents).items() if "-operator-" in name}
    whole = gathered(built("default"))
    only_cluster = {"llmbudget-operator-token-review", "llmbudget-operator-api-servers"}
    expected = {
        "llmbudget-operator-gateways" if name == "llmbudget-namespace" else name: found
        for name, found in whole.items()
        if name.startswith(("llmbudget-operator-", "llmbudget-namespace"))
        and name not in only_cluster
    }
    assert here == expected
    bindings = [one for one in documents if one["kind"] == "RoleBinding"]
    assert {one["roleRef"]["name"] for one in bindings} == set(here)
    subject = {"kind": "ServiceAccount", "name": "llmbudget-operator"}
    assert all(one["subjects"] == [subject | {"namespace": "llmbudget-team"}] for one in bindings)


def gathered(documents: list[Manifest]) -> dict[str, list[Manifest]]:
    """Rules by role."""
    found: dict[str, list[Manifest]] = {}
    for name, rule in rules(documents):
        found.setdefault(name, []).append(rule)
    return found


def test_the_operator_reaches_the_gateways_that_it_renders() -> None:
    (opened,) = (one for one in built("default") if one["kind"] == "NetworkPolicy")
    assert opened["spec"]["policyTypes"] == ["Ingress", "Egress"]
    (watched,) = opened["spec"]["ingress"]
    assert [peer.keys() for peer in watched["from"]] == [{"namespaceSelector"}]
    to = [peer for rule in opened["spec"]["egress"] for peer in rule["to"]]
    (gateways,) = (peer["podSelector"]["matchLabels"] for peer in to if "podSelector" in peer)

    gateway = next(one for one in rendered("minimal") if one["kind"] == "Deployment")
    assert gateways.items() <= gateway["spec"]["template"]["metadata"]["labels"].items()
    (deployment,) = (one for one in built("default") if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["metadata"]["labels"]
    assert opened["spec"]["podSelector"]["matchLabels"].items() <= pod.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod.items()


@pytest.mark.parametrize("folder", ["default", "namespaced"])
def test_nobody_else_in_the_operators_namespace_is_cut_off(folder: str) -> None:
    for policy in built(folder):
        if policy["kind"] == "NetworkPolicy":
            selected = policy["spec"]["podSelector"]["matchLabels"]
            assert selected["app.kubernetes.io/component"] == "operator"


def test_an_overlay_moves_all_of_it_to_another_namespace(tmp_path: Path) -> None:
    """The one that the documentation shows; the policies hold the operator there, too."""
    text = (ROOT / "docs" / "install.md").read_text()
    (overlay,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    where = os.path.relpath(ROOT / "manifests", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(overlay.replace("manifests/", f"{where}/"))
    kubectl = binaries.find(lambda _: None).kubectl
    text = subprocess.check_output([kubectl, "kustomize", tmp_path], text=True)
    assert "llmbudget-system" not in text
    documents = list(yaml.safe_load_all(text))
    assert {place(one)[0] for one in documents if place(one)[1] == "default"} == {
        "Role",
        "RoleBinding",
    }
    spaces = {place(one)[1] for one in documents}
    assert spaces == {"", "default", "llm-operators"}
    subjects = [each for one in documents for each in one.get("subjects", ())]
    assert {each["namespace"] for each in subjects} == {"llm-operators"}


def test_every_admission_policy_is_bound() -> None:
    documents = built("default")
    policies = {
        one["metadata"]["name"] for one in documents if one["kind"] == "ValidatingAdmissionPolicy"
    }
    bindings = [one for one in documents if one["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert {one["spec"]["policyName"] for one in bindings} == policies
    assert all(one["spec"]["validationActions"] == ["Deny"] for one in bindings)
