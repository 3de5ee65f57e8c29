"""The released file installs everything on a cluster that has nothing."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from llmbudget.local import binaries
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.release import FILES, NotWhole, release

pytestmark = pytest.mark.cluster
IMAGE = "registry.example/llmbudget@sha256:" + "0" * 64


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """A control plane of the test's own."""
    async with ControlPlane(tmp_path / "plane", say=lambda _: None) as plane:
        yield plane


def apply(plane: ControlPlane, *arguments: str | Path) -> str:
    program = binaries.find(lambda _: None).kubectl
    command = [program, f"--kubeconfig={plane.kubeconfig}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_one_file_installs_everything(empty: ControlPlane, tmp_path: Path) -> None:
    everything, namespace = release(tmp_path / "dist", IMAGE)
    documents = list(yaml.safe_load_all(everything.read_text()))
    assert apply(empty, "apply", "-f", everything).count(" created") == len(documents)
    assert apply(empty, "apply", "-f", everything).count(" unchanged") >= len(documents) - 3
    apply(empty, "wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    found = apply(
        *(empty, "get", "deployment", "llmbudget-operator", "-n", "llmbudget-system"),
        *("-o", "jsonpath={.spec.template.spec.containers[0]['image', 'args']}"),
    )
    assert found.count(IMAGE) == 2
    apply(empty, "create", "namespace", "llm-platform")
    apply(empty, "apply", "-n", "llm-platform", "-f", namespace)
    budget = Path(__file__).parents[2] / "tests" / "crd" / "good" / "minimal.yaml"
    assert "created" in apply(empty, "create", "-n", "llm-platform", "-f", budget)


def test_nothing_is_left_out(tmp_path: Path) -> None:
    everything, _ = release(tmp_path / "dist")
    documents = list(yaml.safe_load_all(everything.read_text()))
    root = Path(__file__).parents[2]
    folders = [root / "crds", root / "manifests" / "base", root / "manifests" / "admission"]
    written = [
        (one["kind"], one["metadata"]["name"])
        for folder in folders
        for file in folder.glob("*.yaml")
        if file.name != "kustomization.yaml"
        for one in yaml.safe_load_all(file.read_text())
    ]
    assert sorted((one["kind"], one["metadata"]["name"]) for one in documents) == sorted(written)
    assert set(FILES) == {path.name for path in (tmp_path / "dist").iterdir()}


def test_an_image_that_is_not_this_versions_is_no_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmbudget.local.release.version", lambda _: "9.9.9")
    with pytest.raises(NotWhole, match=r"names the image llmbudget:9\.9\.9 0 times instead of 2"):
        release(tmp_path)
