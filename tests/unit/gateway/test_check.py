"""`llmbudget gateway --check`: each fault is told at its field, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tests.golden.test_rendered import SCENARIOS, rendered
from tests.support.gateway_process import account, config, provider

from llmbudget.cli.gateway import command
from llmbudget.gateway.check import check

GOOD = json.loads(config("ns", (account("ns", 10**9),), (provider("sim", 1),)).to_json())


def changed(path: str, value: Any) -> dict[str, Any]:
    """A good configuration with one field that is different; None: without it."""
    document: dict[str, Any] = json.loads(json.dumps(GOOD))
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node: Any = document
    for part in way:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return document


def run(text: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(command, ["--check", "-"], input=text)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout.splitlines()


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_the_operator_renders_is_valid(name: str) -> None:
    found = next(item for item in rendered(name) if "gateway.json" in item.get("data", {}))
    for text in (yaml.safe_dump(found), json.dumps(found), found["data"]["gateway.json"]):
        code, lines = run(text)
        assert code == 0, lines
        assert lines[-1].startswith("valid: generation 1")
        assert all(": warning: " in line for line in lines[:-1])


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("generation", 0, "generation: input should be greater than or equal to 1, and not 0"),
        ("generation", None, "generation: it is missing: add it"),
        ("accounts.0.capNano", "a lot", "accounts[0].capNano: input should be a valid integer"),
        ("accounts.0.capNano", -1, "accounts[0].capNano: -1 is no cap: write 0 to "),
        ("accounts.0.capNano", 2**63, f"accounts[0].capNano: {2**63} is no cap: write 0 to "),
        ("accounts.0.parent", "ns/other", "accounts[0].parent: the root has no parent: remove it"),
        (
            "accounts.0.name",
            "ns/b",
            "accounts[0].name: the first account is not the root",
        ),
        ("accounts.0.name", "team", "accounts[0].name: 'team' is no account: write NAMESPACE"),
        ("accounts", [], "accounts: there is none: add the root's"),
        ("accounts", [*GOOD["accounts"] * 2], "accounts[1].name: ns/team-a is there twice"),
        (
            "providers",
            [*GOOD["providers"] * 2],
            "providers[1].name: sim is there twice",
        ),
        ("providers.0.endpoint", "sim", "providers[0].endpoint: 'sim' is no URL: write https://"),
        ("providers.0.endpoint", "https://sim:99999", "providers[0].endpoint: 'https://sim:99999'"),
        ("providers.0.allowPrivate", False, "providers[0].endpoint: a key would travel in clear"),
        ("providers.0.protocol", "Carrier", "providers[0].protocol: input should be 'OpenAI'"),
        (
            "timeZone",
            "Mars/Olympus",
            "timeZone: there is no time zone 'Mars/Olympus'",
        ),
        ("operator", "operator", "operator: 'operator' is no ServiceAccount: write"),
        (
            "accounts",
            [*GOOD["accounts"], {**GOOD["accounts"][0], "name": "ns/b", "parent": "ns/c"}],
            "accounts[1].parent: no account before it is called ns/c: name an account that",
        ),
    ],
)
def test_a_fault_is_told_at_its_field(path: str, value: Any, line: str) -> None:
    code, lines = run(json.dumps(changed(path, value)))
    assert code == 1
    assert any(each.startswith(line) for each in lines), lines
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("accounts.0.provider", 1, "accounts[0].provider: warning: no gateway of this version"),
        ("providers.0.models.0.price", 1, "providers[0].models[0].price: warning: no gateway of"),
        (
            "accounts.0.providers",
            ["sam"],
            "accounts[0].providers[0]: warning: there is no provider",
        ),
        (
            "providers.0.models.0.prices",
            None,
            "providers[0].models[0].prices: warning: nobody knows",
        ),
        ("accounts.0.consumers", [], "accounts[0].consumers: warning: nobody may spend"),
    ],
)
def test_a_warning_is_no_fault(path: str, value: Any, line: str) -> None:
    code, lines = run(json.dumps(changed(path, value)))
    assert code == 0
    assert any(each.startswith(line) for each in lines), lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "(document): this is no JSON object"),
        ("[1]", "(document): this is no JSON object"),
        ("a: [\nb", "(document): this is neither JSON nor YAML in line 2"),
        ("kind: ConfigMap", "(document): the ConfigMap has no key gateway.json"),
        (
            '{"kind": "ConfigMap", "data": {"gateway.json": "{\\n,"}}',
            "(document): gateway.json is",
        ),
    ],
)
def test_what_is_no_configuration(text: str, line: str) -> None:
    code, lines = run(text)
    assert code == 1
    assert lines[0].startswith(line)


def test_how_it_is_called(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps(GOOD))
    assert CliRunner().invoke(command, ["--check", str(file)]).exit_code == 0
    assert CliRunner().invoke(command, ["--check", str(tmp_path / "none")]).exit_code == 2
    without = CliRunner().invoke(command, [])
    assert without.exit_code == 2
    assert "--config-map" in without.output


LEAVES = st.none() | st.booleans() | st.integers() | st.text()
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(GOOD)), inner)
)


@given(DOCUMENTS)
def test_whatever_it_is_it_is_told_and_not_raised(document: Any) -> None:
    found, problems = check(json.dumps(document))
    assert found is not None or problems


def test_a_configuration_is_read_as_it_was_written() -> None:
    model = provider("sim", 1).models[0].model_copy(update={"prices": None})
    unpriced = provider("sim", 1, models=(model,))
    child = account("ns", None, name="ns/child", parent="ns/team-a")
    made = config("ns", (account("ns", None), child), (unpriced,))
    assert type(made).model_validate_json(made.to_json()) == made
