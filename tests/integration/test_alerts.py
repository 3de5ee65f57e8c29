"""The shipped alerts are raised by what they are for, and by nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.unit.test_docs import anchors

from llmbudget.local import binaries
from llmbudget.local.stage import ROOT

CASES = Path(__file__).with_name("alerts.yaml")
pytestmark = pytest.mark.timeout(900)  # promtool is built where it is not in the cache yet


@pytest.fixture(scope="session")
def promtool() -> Path:
    return binaries.tool("promtool", print)


@pytest.fixture
def groups() -> list[dict[str, list[dict[str, object]]]]:
    (resource,) = yaml.safe_load_all((ROOT / "manifests/monitoring/rules.yaml").read_text())
    found: list[dict[str, list[dict[str, object]]]] = resource["spec"]["groups"]
    return found


def test_alerts(
    promtool: Path, groups: list[dict[str, list[dict[str, object]]]], tmp_path: Path
) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    (tmp_path / CASES.name).write_text(CASES.read_text())
    command = [promtool, "test", "rules", CASES.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_raised_by_a_case_and_leads_to_the_runbook(
    groups: list[dict[str, list[dict[str, object]]]],
) -> None:
    rules = [rule for group in groups for rule in group["rules"]]
    case = re.compile(r"alertname: (\w+)\n    eval_time: \w+\n    exp_alerts:\n")
    raised = case.findall(CASES.read_text())
    assert {rule["alert"] for rule in rules} == set(raised)
    sections = anchors(ROOT / "docs" / "runbook.md")
    for rule in rules:
        annotations = rule["annotations"]
        assert isinstance(annotations, dict)
        page, _, section = annotations["runbook"].partition("#")
        assert (page, section in sections) == ("docs/runbook.md", True), annotations
