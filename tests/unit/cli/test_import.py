"""The 371OS guide's files become resources; what can't is named, and no key is shown."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from llmbudget.cli.importing import command
from llmbudget.cli.ledger import command as ledger_command
from llmbudget.ledger.export import exact_usd
from llmbudget.ledger.interface import Entry
from llmbudget.ledger.sqlite.rows import Rows
from llmbudget.ledger.sqlite.schema import FILE_NAME, connect_reading

GUIDE = Path(__file__).parents[2] / "support" / "guide"
CANARY = "sk-canary-4f1d"
Manifest = dict[str, Any]


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """The guide's files, where 371OS has them, with keys."""
    root = tmp_path / "371-os"
    places = {
        "configs": ["production.yaml", "production-smb.yaml"],
        "deployment/kubernetes": ["secrets.yaml"],
        "src/router": ["providers.json", "llm_usage.json", "config.py"],
    }
    packed = base64.b64encode(CANARY.encode()).decode()
    for folder, names in places.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            text = (GUIDE / name).read_text().replace("<base64-encoded-value>", packed)
            (root / folder / name).write_text(text)
    return root


def run(root: Path, *arguments: str) -> Result:
    output = ("--output", str(root.parent / "out"))
    return CliRunner().invoke(command, [str(root), *output, *arguments])


def written(root: Path, name: str) -> dict[str, Manifest]:
    """By name."""
    documents = yaml.safe_load_all((root.parent / "out" / name).read_text())
    return {one["metadata"]["name"]: one for one in documents}


def test_the_small_installation(installation: Path) -> None:
    result = run(
        installation, "--name", "team", "--endpoint", "localai=http://localai.ai.svc:8080/v1"
    )
    assert result.exit_code == 0, result.output
    org = written(installation, "budget.yaml")["team"]["spec"]
    assert org["budget"] == {
        "monthlyCap": "100.00",
        "alertThresholds": [
            {"percentage": 80, "action": "notify_admin"},
            {"percentage": 95, "action": "downgrade_models"},
        ],
    }
    assert org["monitoring"]["posthog"]["sampleRate"] == "0.5"
    assert org["monitoring"]["endpoints"][0] == {
        "path": "/metrics",
        "authRequired": True,
        "rateLimit": "100/min",
    }
    assert "ledger" not in org
    providers = written(installation, "providers.yaml")
    router = providers["openrouter"]["spec"]
    assert router["endpoint"] == "https://openrouter.ai/api/v1"
    assert router["models"] == [
        {
            "name": "gpt-4o-mini",
            "upstreamName": "openai/gpt-4o-mini",
            "cost": {"inputPer1K": "0.0006", "outputPer1K": "0.0006"},
            "maxContext": 128000,
            "latencyMs": 500,
        }
    ]
    assert providers["localai"]["spec"]["allowPrivate"] is True
    secret = written(installation, "secrets.yaml")["openrouter-key"]
    assert secret["metadata"]["labels"] == {"llmbudget.io/provider-key": "true"}
    assert secret["metadata"]["annotations"] == {"llmbudget.io/allowed-host": "openrouter.ai"}
    key = base64.b64decode(secret["data"]["OPENROUTER_API_KEY"]).decode()
    assert key == CANARY

    said = result.output
    assert "Secret posthog: apiKey, for which no key was found (POSTHOG_API_KEY)" in said
    assert "--allow-private-host=localai.ai.svc:8080" in said
    assert "spec.consumers" in said
    assert "production-smb.yaml: monitoring.enabled" in said
    assert "spent in 2025-08: 0.00005 USD" in said


def test_no_key_is_shown_and_only_its_owner_reads_it(installation: Path) -> None:
    said = run(installation).output
    packed = base64.b64encode(CANARY.encode()).decode()
    assert CANARY not in said
    assert packed not in said
    for path in (installation.parent / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (packed in path.read_text()) == (path.name == "secrets.yaml")
    broken = installation / "deployment" / "kubernetes" / "secrets.yaml"
    broken.write_text(f"data: {{K: {CANARY}")
    again = run(installation, "--output", str(installation.parent / "second"))
    assert again.exit_code == 1
    assert "secrets.yaml, line 1: no YAML" in again.output
    assert CANARY not in again.output


@pytest.mark.parametrize(
    ("path", "written", "told"),
    [
        ("configs/production-smb.yaml", f"posthog:\n  api_key: {CANARY}: x\n", "line 2: no YAML"),
        ("src/router/config.py", f'KEY = "{CANARY}\n', "line 1: no Python"),
        ("src/router/config.py", f"MONTHLY_BUDGET_CAP = float('{CANARY}')\n", "no plain number"),
    ],
)
def test_no_key_is_shown_by_what_is_wrong_with_a_file(
    installation: Path, path: str, written: str, told: str
) -> None:
    caps = installation / "configs" / "production-smb.yaml"
    caps.write_text(caps.read_text().replace("  monthly_cap: 100.00\n", ""))
    (installation / path).write_text(written)
    said = run(installation)
    assert said.exit_code == 1
    assert told in said.output
    assert CANARY not in said.output
    assert isinstance(said.exception, SystemExit)


@pytest.mark.parametrize("profile", ["enterprise", "global"])
def test_several_gateways_share_a_database(installation: Path, profile: str) -> None:
    name = f"production-{profile}.yaml"
    (installation / "configs" / name).write_text((GUIDE / name).read_text())
    asked = run(installation)
    assert asked.exit_code == 1
    assert f"--profile {' | '.join(sorted([profile, 'smb']))}" in asked.output
    result = run(installation, "--profile", profile)
    assert result.exit_code == 0, result.output
    org = written(installation, "budget.yaml")["org"]["spec"]
    assert org["ledger"]["postgres"]["secretKeyRef"] == {"name": "llm-ledger", "key": "uri"}
    assert "Secret llm-ledger with the key uri" in result.output
    opening = list(written(installation, "opening.yaml").values())
    assert [one["kind"] for one in opening] == ["Job"], "named as its ConfigMap, and no claim"
    if profile == "enterprise":
        scaling = {"minReplicas": 3, "maxReplicas": 10, "cpuThreshold": 70}
        assert org["highAvailability"] == {"enabled": True, "autoScaling": scaling}
        assert org["monitoring"]["datadog"]["apiKeySecretRef"]["name"] == "datadog"
    else:
        regions = ["us-east", "us-west", "eu-central", "ap-southeast"]
        assert [one["name"] for one in org["globalDistribution"]["regions"]] == regions
        tracing = {"enabled": True, "collector": "jaeger-collector.global:14268"}
        assert org["monitoring"]["distributedTracing"] == tracing


def test_what_nobody_knows_is_left_to_be_filled_in(installation: Path) -> None:
    secrets = installation / "deployment" / "kubernetes" / "secrets.yaml"
    secrets.write_text((GUIDE / "secrets.yaml").read_text() + "  OTHER: a2V5\n")
    result = run(installation)
    assert result.exit_code == 0, result.output
    assert "endpoint" not in written(installation, "providers.yaml")["localai"]["spec"]
    local = written(installation, "secrets.yaml")["localai-key"]
    assert "annotations" not in local["metadata"]
    assert local["data"] == {}
    for said in (
        "LLMProvider localai: spec.endpoint, which providers.json does not say",
        "Secret localai-key: annotation llmbudget.io/allowed-host, the endpoint's host",
        "Secret openrouter-key: OPENROUTER_API_KEY, for which no key was found",
        "secrets.yaml: OTHER, which no provider names",
    ):
        assert said in result.output


def test_every_word_is_carried_over_or_named(installation: Path) -> None:
    file = installation / "configs" / "production-smb.yaml"
    file.write_text(file.read_text() + "scaling: {mode: magic}\n")
    providers = installation / "src" / "router" / "providers.json"
    entries = json.loads(providers.read_text())
    entries[0]["region"] = "eu"
    providers.write_text(json.dumps(entries))
    said = run(installation).output
    assert "production-smb.yaml: scaling.mode" in said
    assert "providers.json: entry 1 (openrouter): region" in said


def test_one_provider_with_several_models_and_keys(installation: Path) -> None:
    providers = installation / "src" / "router" / "providers.json"
    entries = json.loads(providers.read_text())
    more = [entries[0] | {"model": "claude-3-haiku"}, entries[0] | {"endpoint_env": "SECOND"}]
    providers.write_text(json.dumps(entries + more))
    assert run(installation).exit_code == 0
    made = written(installation, "providers.yaml")
    assert [one["name"] for one in made["openrouter"]["spec"]["models"]] == [
        "gpt-4o-mini",
        "claude-3-haiku",
    ]
    assert made["openrouter-2"]["spec"]["credentials"]["secretKeyRef"]["key"] == "SECOND"


def test_the_cap_of_config_py_where_no_file_says_one(installation: Path) -> None:
    file = installation / "configs" / "production-smb.yaml"
    file.write_text(file.read_text().replace("  monthly_cap: 100.00\n", ""))
    assert run(installation).exit_code == 0
    assert written(installation, "budget.yaml")["org"]["spec"]["budget"]["monthlyCap"] == "20.00"


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("src/router/providers.json", "[", "{", "providers.json"),
        ("src/router/providers.json", "0.0006", "-1", "spec.models.0.cost.inputPer1K"),
        ("configs/production-smb.yaml", "100.00", "lots", "spec.budget.monthlyCap"),
        ("configs/production-smb.yaml", "notify_admin", "shout", "alertThresholds.0.action"),
        ("src/router/llm_usage.json", '"cost"', '"price"', "row 1: 'cost' is missing"),
    ],
)
def test_what_no_resource_may_say_is_refused(
    installation: Path, path: str, old: str, new: str, message: str
) -> None:
    file = installation / path
    file.write_text(file.read_text().replace(old, new, 1))
    result = run(installation)
    assert result.exit_code == 1
    assert message in result.output
    assert not (installation.parent / "out").exists(), "nothing by halves"


SECRETS = "deployment/kubernetes/secrets.yaml"
PRODUCTION = "configs/production-smb.yaml"
PROVIDERS = "src/router/providers.json"
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("path", "content", "told"),
    [
        (SECRETS, b"data: {K: \xff}\n", "secrets.yaml: not UTF-8 at byte 10: save it as UTF-8"),
        (PRODUCTION, b"\xff", "production-smb.yaml: not UTF-8 at byte 0"),
        (PROVIDERS, b"\xff", "providers.json: not UTF-8 at byte 0"),
        ("src/router/llm_usage.json", b"\xff", "llm_usage.json: not the guide's usage rows"),
        (PRODUCTION, b"budget: &b\n  again: *b\n", "line 2: a YAML alias (*): write out"),
        (PRODUCTION, LAUGHS.encode(), "line 2: a YAML alias (*): write out"),
        (SECRETS, b"data: &d\n  K: *d\n", "line 2: a YAML alias (*): write out"),
        (PRODUCTION, b"[" * 50_000, "no YAML that can be read (RecursionError)"),
        (PROVIDERS, b"[" * 100_000, "providers.json: no JSON"),
        ("src/router/llm_usage.json", b"[" * 100_000, "not the guide's usage rows"),
        (PRODUCTION, b"budget: {monthly_cap: 2025-13-45}\n", "(ValueError)"),
        (PRODUCTION, b"budget: 20\n", "budget: no mapping: write monthly_cap below it"),
        (PRODUCTION, b"global_distribution: {regions: 3}\n", "spec.globalDistribution.regions.0"),
        (PRODUCTION, b"deployment: {replicas: many}\n", "spec.deployment.replicas"),
        (PRODUCTION, b"monitoring: {endpoints: all}\n", "spec.monitoring.endpoints.0"),
        (SECRETS, b"data: [K]\n", "secrets.yaml: document 1: data is no mapping of keys"),
        (PROVIDERS, b"[]", "providers.json: no provider is there, and a budget needs one"),
        (PROVIDERS, b'[{"model": "m", "endpoint_env": "K"}]', "entry 1: name is missing"),
        (PROVIDERS, b'[{"name": "n", "endpoint_env": "K"}]', "entry 1: model is missing"),
        (PROVIDERS, b'[{"name": "n", "model": "m"}]', "entry 1: endpoint_env is missing"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(
    installation: Path, path: str, content: bytes, told: str
) -> None:
    (installation / path).write_bytes(content)
    result = run(installation)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert told in " ".join(result.output.split())
    assert not (installation.parent / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--namespace", "Bad NS", "no name of a namespace"),
        ("--namespace", "a" * 64, "no name of a namespace"),
        ("--name", "x/../../y", "no name of a budget"),
        ("--name", "1st", "beginning with a letter"),
        ("--name", "a" * 53, "52 at most"),
        ("--endpoint", "https://localai.example", "write PROVIDER=URL"),
    ],
)
def test_a_name_that_no_resource_may_have_is_refused(
    installation: Path, option: str, value: str, told: str
) -> None:
    result = run(installation, option, value)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
    assert not (installation.parent / "out").exists()


def test_a_key_that_is_there_twice_is_said(installation: Path) -> None:
    def document(key: str, part: str = "data") -> str:
        packed = base64.b64encode(key.encode()).decode()
        return yaml.safe_dump({part: {"OPENROUTER_API_KEY": packed if part == "data" else key}})

    secrets = installation / SECRETS
    secrets.write_text("---\n".join((document("first"), document(CANARY, "stringData"))))
    result = run(installation)
    assert result.exit_code == 0, result.output
    taken = written(installation, "secrets.yaml")["openrouter-key"]["data"]["OPENROUTER_API_KEY"]
    assert base64.b64decode(taken).decode() == CANARY
    assert "OPENROUTER_API_KEY is there several times: the one of document 2" in result.output
    assert CANARY not in result.output


def test_an_empty_key_is_left_to_be_filled_in(installation: Path) -> None:
    (installation / SECRETS).write_text("data: {OPENROUTER_API_KEY: }\n")
    result = run(installation)
    assert result.exit_code == 0, result.output
    assert written(installation, "secrets.yaml")["openrouter-key"]["data"] == {}


def test_nothing_is_written_over(installation: Path) -> None:
    assert run(installation).exit_code == 0
    again = run(installation)
    assert again.exit_code == 1
    assert "has files: name a new folder" in again.output


def test_the_job_charges_the_history_once(installation: Path, tmp_path: Path) -> None:
    assert run(installation).exit_code == 0
    documents = list(yaml.safe_load_all((tmp_path / "out" / "opening.yaml").read_text()))
    history, claim, job = documents
    assert (claim["metadata"]["name"], job["kind"]) == ("org-ledger", "Job")
    usage = tmp_path / "llm_usage.json.gz"
    usage.write_bytes(base64.b64decode(history["binaryData"]["llm_usage.json.gz"]))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    arguments = [
        argument.replace(mounted["usage"], str(tmp_path)).replace(
            mounted["ledger"], str(tmp_path / "ledger")
        )
        for argument in container["args"][1:]
    ]
    (tmp_path / "ledger").mkdir()
    first = CliRunner().invoke(ledger_command, arguments)
    assert first.exit_code == 0, first.output
    assert "1 calls charged to llm-platform/org" in first.output
    second = CliRunner().invoke(ledger_command, arguments)
    assert second.exit_code == 0
    assert "taken over before" in second.output
    sound = CliRunner().invoke(ledger_command, ["verify", "--ledger", str(tmp_path / "ledger")])
    assert sound.exit_code == 0, sound.output
    assert [exact_usd(entry.cost) for entry in entries(tmp_path / "ledger")] == ["0.00005"]


def entries(folder: Path) -> list[Entry]:
    connection = connect_reading(folder / FILE_NAME)
    try:
        return Rows(connection).entries(0, 10)
    finally:
        connection.close()


def test_a_folder_without_providers_is_named(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}: there is no providers.json in it, nor below it\n"


def test_a_profile_that_is_not_there_is_told_with_those_that_are(installation: Path) -> None:
    result = run(installation, "--profile=smbb")
    assert result.exit_code == 1
    assert result.output == "Error: there is no production-smbb.yaml: there are those of smb\n"


@pytest.mark.parametrize(
    ("endpoint", "code", "said"),
    [
        ("localai", 2, "write PROVIDER=URL, not localai"),
        ("locali=http://localai.ai.svc/v1", 1, "no provider locali, but localai, openrouter"),
    ],
)
def test_an_endpoint_of_nobody_is_refused(
    endpoint: str, code: int, said: str, installation: Path
) -> None:
    result = run(installation, "--endpoint", endpoint)
    assert result.exit_code == code
    assert said in result.output
