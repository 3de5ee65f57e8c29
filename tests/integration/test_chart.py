"""The Helm chart, installed, upgraded and uninstalled on the real API server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from llmbudget.local import binaries
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.stage import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),  # Helm is built where it is not in the cache yet
]
CHART = ROOT / "manifests" / "chart"
RELEASED = ROOT / "tests" / "crd" / "released"


def run(plane: ControlPlane, program: Path, *arguments: str | Path) -> str:
    command = [program, f"--kubeconfig={plane.kubeconfig}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_installed_upgraded_and_uninstalled(
    empty_cluster: ControlPlane, tmp_path: Path
) -> None:
    helm, kubectl = binaries.tool("helm", print), binaries.find(lambda _: None).kubectl

    def helms(*arguments: str | Path) -> str:
        where = ("--namespace", "llm-operators", "llmbudget")
        return run(empty_cluster, helm, *arguments[:1], *where, *arguments[1:])

    def asks(*arguments: str | Path) -> str:
        return run(empty_cluster, kubectl, *arguments)

    asks("create", "namespace", "llm-platform")
    # As a release of the past installed it: its CRDs, and what was stored under them.
    old = old_chart(tmp_path / "old")
    noted = helms("install", old, "--create-namespace", "--wait=hookOnly")
    assert "It may not manage gateways anywhere yet" in noted
    asks("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    asks("create", "-n", "llm-platform", "-f", ROOT / "tests" / "crd" / "good" / "minimal.yaml")

    noted = helms("upgrade", CHART, "--set", "budgetNamespaces={llm-platform}", "--wait=hookOnly")
    assert "It may manage gateways in llm-platform." in noted
    new = yaml.safe_load((ROOT / "crds" / "llmproviders.llmbudget.io.yaml").read_text())
    description = new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"]
    explained = asks("get", "crd", "llmproviders.llmbudget.io", "-o", "yaml")
    stored = yaml.safe_load(explained)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert stored["description"] == description, "Helm upgrades the CRDs"
    assert asks("get", "llmbudgets", "-A").count("team") == 1
    operator = "system:serviceaccount:llm-operators:llmbudget-operator"
    may = ("auth", "can-i", "create", "deployments", f"--as={operator}", "-n", "llm-platform")
    assert asks(*may) == "yes\n"

    helms("uninstall")
    assert asks("get", "llmbudgets", "-A").count("team") == 1, "budgets outlive the release"
    left = asks("get", "clusterroles,clusterrolebindings,validatingadmissionpolicies", "-o", "name")
    assert "llmbudget" not in left


def old_chart(folder: Path) -> Path:
    """The chart with the CRDs that were released last."""
    subprocess.run(["cp", "-r", CHART, folder], check=True)
    template = folder / "templates" / "crds.yaml"
    text = "".join(
        "---\n"
        + (RELEASED / name)
        .read_text()
        .replace(
            "\nmetadata:\n", "\nmetadata:\n  annotations: {helm.sh/resource-policy: keep}\n", 1
        )
        for name in ("llmbudgets.llmbudget.io.yaml", "llmproviders.llmbudget.io.yaml")
    ).replace("description: 'An upstream LLM API:", "description: 'As it was:", 1)
    template.write_text(text)
    return folder
