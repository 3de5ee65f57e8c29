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
        ("namespaced.apiServers={apiserver}", "/namespaced/apiServers/0"),
    ],
)
def test_a_value_that_means_nothing_is_refused(helm: Path, value: str, message: str) -> None:
    done = run(helm, "template", "llmbudget", CHART, "--set", value)
    assert done.returncode
    assert message in done.stderr


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
