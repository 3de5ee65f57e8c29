"""The released file installs everything on a cluster that has nothing."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from llmbudget.local import binaries
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.release import FILES, NotWhole, package, release

pytestmark = pytest.mark.cluster
IMAGE = "registry.example/llmbudget@sha256:" + "0" * 64


def apply(plane: ControlPlane, *arguments: str | Path) -> str:
    program = binaries.find(lambda _: None).kubectl
    command = [program, f"--kubeconfig={plane.kubeconfig}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_one_file_installs_everything(empty_cluster: ControlPlane, tmp_path: Path) -> None:
    everything, namespace, *_ = release(tmp_path / "dist", IMAGE)
    documents = list(yaml.safe_load_all(everything.read_text()))
    assert apply(empty_cluster, "apply", "-f", everything).count(" created") == len(documents)
    again = apply(empty_cluster, "apply", "-f", everything).splitlines()
    changed = [line for line in again if not line.endswith(" unchanged")]
    # Of these kubectl sends a patch each time.
    assert all(line.startswith(("validatingadmission", "poddisruptionbudget")) for line in changed)
    apply(empty_cluster, "wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    found = apply(
        *(empty_cluster, "get", "deployment", "llmbudget-operator", "-n", "llmbudget-system"),
        *("-o", "jsonpath={.spec.template.spec.containers[0]['image', 'args']}"),
    )
    assert found.count(IMAGE) == 2
    apply(empty_cluster, "create", "namespace", "llm-platform")
    apply(empty_cluster, "apply", "-n", "llm-platform", "-f", namespace)
    budget = Path(__file__).parents[2] / "tests" / "crd" / "good" / "minimal.yaml"
    assert "created" in apply(empty_cluster, "create", "-n", "llm-platform", "-f", budget)


def test_nothing_is_left_out(tmp_path: Path) -> None:
    everything, *_ = release(tmp_path / "dist")
    documents = list(yaml.safe_load_all(everything.read_text()))
    root = Path(__file__).parents[2]
    parts = ("base", "cluster", "people", "admission")
    folders = [root / "crds", *(root / "manifests" / part for part in parts)]
    written = [
        (one["kind"], one["metadata"]["name"])
        for folder in folders
        for file in folder.glob("*.yaml")
        if file.name != "kustomization.yaml"
        for one in yaml.safe_load_all(file.read_text())
    ]
    assert sorted((one["kind"], one["metadata"]["name"]) for one in documents) == sorted(written)
    packaged = f"llmbudget-{version('llmbudget')}.tgz"
    assert {*FILES, packaged} == {path.name for path in (tmp_path / "dist").iterdir()}


@pytest.mark.parametrize(
    "image", [IMAGE, "registry.example:5000/llmbudget:1", "registry.example:5000/llmbudget"]
)
def test_the_packaged_chart_starts_the_image_of_the_release(tmp_path: Path, image: str) -> None:
    chart = package(tmp_path, image)
    helm = [binaries.tool("helm", print), "template", "--namespace=llmbudget-system", chart]
    rendered = subprocess.run(helm, capture_output=True, text=True, check=True).stdout
    whole = image if "@" in image or image.endswith(":1") else f"{image}:{version('llmbudget')}"
    assert rendered.count(whole) == 2


def test_an_image_that_is_not_this_versions_is_no_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmbudget.local.release.version", lambda _: "9.9.9")
    with pytest.raises(NotWhole, match=r"names the image llmbudget:9\.9\.9 0 times instead of 2"):
        release(tmp_path)
