"""An imported installation on the real API server: its history counts against the cap."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.operator_stage import budget, start_spending, status

from llmbudget.cli.importing import command
from llmbudget.cli.ledger import command as ledger_command
from llmbudget.clients.cluster import Cluster
from llmbudget.local.stage import Stage

pytestmark = pytest.mark.cluster
GUIDE = Path(__file__).parents[1] / "support" / "guide"
Kubectl = Callable[..., str]


@pytest.mark.parametrize("profile", ["smb", "enterprise", "global"])
def test_what_is_written_is_taken(
    kubectl: Kubectl, crds: None, namespace: str, tmp_path: Path, profile: str
) -> None:
    output = tmp_path / "out"
    arguments = [str(GUIDE), "--profile", profile, "--namespace", namespace]
    arguments += ["--endpoint", "localai=http://localai.ai.svc:8080/v1", "--output", str(output)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    said = kubectl("apply", "--server-side", "-f", str(output))
    kinds = [line.partition("/")[0].partition(".")[0] for line in said.splitlines()]
    assert kinds.count("llmprovider") == 3
    assert {"llmbudget", "secret", "configmap", "job"} <= set(kinds)
    assert ("persistentvolumeclaim" in kinds) == (profile == "smb")


async def test_the_history_counts_against_the_cap(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    operator: asyncio.subprocess.Process,
    tmp_path: Path,
) -> None:
    row = json.loads((GUIDE / "llm_usage.json").read_text())[0]
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    usage = tmp_path / "llm_usage.json"
    usage.write_text(json.dumps([row | {"ts": now, "cost": cost} for cost in (0.03, 0.06)]))
    ledger = stage.gateways / "claims" / namespace / "team-a-ledger"
    ledger.mkdir(parents=True)
    arguments = ["take-over", "--account", f"{namespace}/team-a", "--usage", str(usage)]
    command_line = [*arguments, "--ledger", str(ledger)]
    charged = await asyncio.to_thread(CliRunner().invoke, ledger_command, command_line)
    assert charged.exit_code == 0, charged.output

    mine = budget(namespace, budget={"monthlyCap": "0.10"})
    app = await start_spending(stage, cluster, namespace, mine)
    assert (await status(cluster, namespace))["spent"] == "0.09"
    refused = await app.call("large", 2000)
    assert refused.status_code == 402, refused.text
    assert (await app.call("small", 10)).status_code == 200
