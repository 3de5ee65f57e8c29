"""The Helm chart renders what kustomize builds, and what its values say.

`make golden` writes the files anew.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.golden.test_manifests import built, place

from llmbudget.local import binaries
from llmbudget.local.chart import NotMade, generated
from llmbudget.local.stage import ROOT

HERE = Path(__file__).parent / "chart"
CHART = ROOT / "manifests" / "chart"
SCENARIOS = sorted(path.name.removesuffix(".values.yaml") for path in HERE.glob("*.values.yaml"))
HELMS_OWN = (
    *("app.kubernetes.io/instance", "app.kubernetes.io/version"),
    *("app.kubernetes.io/managed-by", "helm.sh/chart"),
)
Manifest = dict[str, Any]
pytestmark = pytest.mark.timeout(900)  # Helm is built where it is not in the cache yet


class Strict(yaml.SafeLoader):
    """Refuses a key that is written twice, as Flux and kustomize do."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    assert len(set(keys)) == len(keys), f"a key is written twice: {keys}{node.start_mark}"
    return loader.construct_mapping(node, deep=True)


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@pytest.fixture(scope="session")
def helm() -> Path:
    return binaries.tool("helm", print)


def run(helm: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm, *arguments], capture_output=True, text=True, check=False)


def rendered(helm: Path, *arguments: str | Path, namespace: str) -> list[Manifest]:
    done = run(helm, "template", "llmbudget", CHART, "--namespace", namespace, *arguments)
    assert done.returncode == 0, done.stderr
    return sorted(filter(None, yaml.load_all(done.stdout, Loader=Strict)), key=place)


def plain(document: Manifest) -> Manifest:
    """Take off what Helm adds, and the labels that kustomize gives to no CRD; lines of expressions,
    which it breaks anew, are put together."""
    metadata = dict(document["metadata"])
    names = ("app.kubernetes.io/name", "app.kubernetes.io/part-of")
    over = (*HELMS_OWN, *names) if document["kind"] == "CustomResourceDefinition" else HELMS_OWN
    for field, unwanted in (("labels", over), ("annotations", ("helm.sh/resource-policy",))):
        left = {k: v for k, v in (metadata.pop(field, None) or {}).items() if k not in unwanted}
        metadata |= {field: left} if left else {}
    flat = json.dumps(document | {"metadata": metadata}).replace(r"\n", " ")
    return dict(json.loads(re.sub(r" +", " ", flat)))


def same(one: list[Manifest], other: list[Manifest]) -> None:
    assert [place(each) for each in one] == [place(each) for each in other]
    for mine, theirs in zip(one, other, strict=True):
        assert plain(mine) == plain(theirs), place(mine)


def test_the_chart_is_the_default_installation(helm: Path) -> None:
    kustomized = [one for one in built("default") if one["kind"] != "Namespace"]
    same(rendered(helm, namespace="llmbudget-system"), kustomized)


def test_the_chart_is_the_namespaced_installation(helm: Path) -> None:
    arguments = ("--set", "namespaced.enabled=true")
    same(rendered(helm, *arguments, namespace="llmbudget-team"), built("namespaced"))


def test_the_chart_lets_the_operator_into_a_namespace(helm: Path) -> None:
    arguments = ("--set", "budgetNamespaces={llm-platform}")
    made = rendered(helm, *arguments, namespace="llmbudget-system")
    (binding,) = (one for one in made if one["metadata"].get("namespace") == "llm-platform")
    (expected,) = built("namespace")
    expected["metadata"]["namespace"] = "llm-platform"
    same([binding], [expected])


def test_the_chart_is_what_prometheus_and_grafana_are_given(helm: Path) -> None:
    arguments = ("--set", "monitoring.enabled=true")
    made = rendered(helm, *arguments, namespace="llmbudget-system")
    expected = built("monitoring")
    places = [place(one) for one in expected]
    same([one for one in made if place(one) in places], expected)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_values(helm: Path, scenario: str, request: pytest.FixtureRequest) -> None:
    values = ("--values", HERE / f"{scenario}.values.yaml")
    golden = HERE / f"{scenario}.yaml"
    documents = rendered(helm, *values, namespace="llm-operators")
    now = yaml.safe_dump_all(documents, sort_keys=False, width=100)
    if request.config.getoption("--update-golden"):
        golden.write_text(now)
    assert now == golden.read_text(), f"{golden.name} differs: look at it, then make golden"
    assert "llmbudget-system" not in now
    linted = run(helm, "lint", CHART, "--strict", "--namespace", "llm-operators", *values)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_every_value_is_described_and_checked() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    everything = yaml.safe_load((HERE / "everything.values.yaml").read_text())

    def described(of: Mapping[str, Any], by: Mapping[str, Any]) -> None:
        for name, value in of.items():
            assert name in by["properties"]
            if "properties" in by["properties"][name]:
                described(value, by["properties"][name])

    described(values, schema)
    assert set(schema["properties"]) == {*values, "global"}, "Helm itself adds `global`"
    assert set(values) - {"namespaced"} == set(everything), "a golden file shows each value"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("imge.tag=1", "imge"),
        ("image.digest=latest", "/image/digest"),
        ("budgetNamespaces={Team_A}", "/budgetNamespaces/0"),
        ("replicas=two", "/replicas"),
        ("crds.remove=true", "remove"),
        ("image.tag=a b", "/image/tag"),
        ("image.repository=a b", "/image/repository"),
        ("gatewayImage=x\n        - --allow-private-host=10.0.0.1", "/gatewayImage"),
        ("imagePullSecrets[0]=", "/imagePullSecrets/0"),
        ("allowImages={a: b}", "/allowImages/0"),
        ("allowImages={x # y}", "/allowImages/0"),
        ("allowPrivateHosts={a b:80}", "/allowPrivateHosts/0"),
        ("namespaced.apiServers={apiserver}", "/namespaced/apiServers/0"),
        ("namespaced.apiServers={abc:99999}", "/namespaced/apiServers/0"),
        ("namespaced.apiServers={192.0.2.1:65536}", "/namespaced/apiServers/0"),
        ("apiServerPorts={api}", "/apiServerPorts/0"),
        ("monitoring.namespace=Team_A", "/monitoring/namespace"),
        ("resources.a=1", "/resources"),
        ("resources.requests.cpu=much", "/resources/requests/cpu"),
        ("tolerations[0].kye=a", "/tolerations/0"),
        ("affinity.node=a", "/affinity"),
        ("priorityClassName=a b", "/priorityClassName"),
    ],
)
def test_a_value_that_means_nothing_is_refused(helm: Path, value: str, message: str) -> None:
    done = run(helm, "template", "llmbudget", CHART, "--set", value)
    assert done.returncode
    assert message in done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"namespaced": {"enabled": True}, "budgetNamespaces": ["team-a"]},
            "name them in namespaced.namespaces instead",
        ),
        ({"namespaced": {"namespaces": ["team-a"]}}, "set namespaced.enabled too"),
        ({"namespaced": {"apiServers": ["192.0.2.1:6443"]}}, "set namespaced.enabled too"),
        (
            {"namespaced": {"enabled": True}, "monitoring": {"enabled": True}},
            "write a PodMonitor of your own",
        ),
        ({"imagePullSecrets": [{}]}, "missing property 'name'"),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    helm: Path, values: Manifest, message: str, tmp_path: Path
) -> None:
    done = run(helm, "template", "llmbudget", CHART, "--values", written(values, tmp_path))
    assert done.returncode
    assert message in done.stderr


def written(values: Manifest, folder: Path) -> Path:
    path = folder / "values.yaml"
    path.write_text(json.dumps(values))
    return path


NUMBERS = {
    "budgetNamespaces": ["123", "true"],
    "imagePullSecrets": [{"name": "123"}],
    "allowImages": ["0x10"],
    "allowPrivateHosts": ["10.0.0.1:80"],
    "image": {"repository": "1e3", "tag": "1"},
    "priorityClassName": "123",
}


@pytest.mark.parametrize("namespaced", [False, True])
def test_names_that_read_like_numbers_stay_texts(
    helm: Path, namespaced: bool, tmp_path: Path
) -> None:
    values = dict(NUMBERS)
    if namespaced:
        del values["budgetNamespaces"]
        values["namespaced"] = {"enabled": True, "namespaces": ["456", "true"]}
    done = run(helm, "template", "123", CHART, "-n", "123", "--values", written(values, tmp_path))
    assert done.returncode == 0, done.stderr
    made = list(filter(None, yaml.load_all(done.stdout, Loader=Strict)))
    for one in made:
        metadata = one["metadata"]
        assert isinstance(metadata.get("namespace", ""), str), place(one)
        labels = {**metadata.get("labels", {}), **metadata.get("annotations", {})}
        assert all(isinstance(each, str) for each in labels.values()), place(one)
        for subject in one.get("subjects", ()):
            assert subject.get("namespace", "123") == "123"
    spaces = {one["metadata"].get("namespace") for one in made}
    served = {"456", "true"} if namespaced else {"123", "true", "default"}
    assert spaces - {None} == {"123", *served}
    (deployment,) = (one for one in made if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == "123"
    assert pod["imagePullSecrets"] == [{"name": "123"}]
    assert pod["containers"][0]["image"] == "1e3:1"
    assert all(isinstance(each, str) for each in pod["containers"][0]["args"])
    assert "--allow-image=0x10" in pod["containers"][0]["args"]


def test_the_ports_of_the_api_server(helm: Path) -> None:
    made = rendered(helm, "--set", "apiServerPorts={8443,16443}", namespace="llmbudget-system")
    (policy,) = (one for one in made if one["kind"] == "NetworkPolicy")
    ports = [[each["port"] for each in rule["ports"]] for rule in policy["spec"]["egress"]]
    assert [443, 8443, 16443] in ports


def test_crds_outlive_the_release_unless_asked_otherwise(helm: Path) -> None:
    def crds(*arguments: str) -> list[Manifest]:
        made = rendered(helm, *arguments, namespace="llmbudget-system")
        return [one for one in made if one["kind"] == "CustomResourceDefinition"]

    kept = {"helm.sh/resource-policy": "keep"}
    assert [one["metadata"].get("annotations") for one in crds()] == [kept, kept]
    assert [one["metadata"].get("annotations") for one in crds("--set", "crds.keep=false")] == [
        None,
        None,
    ]
    assert not crds("--set", "crds.enabled=false")


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version("llmbudget")


def test_a_manifest_that_lacks_a_place_makes_no_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    for folder in ("manifests", "crds"):
        shutil.copytree(ROOT / folder, checkout / folder)
    deployment = checkout / "manifests" / "base" / "deployment.yaml"
    deployment.write_text(deployment.read_text().replace("--gateway-image", "--image"))
    monkeypatch.setattr("llmbudget.local.chart.ROOT", checkout)
    with pytest.raises(NotMade, match="gateway-image"):
        generated()
