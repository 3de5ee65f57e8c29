"""The generated CRDs: structural, described everywhere, without a default that would be stored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from llmbudget.api.crd import KINDS, Kind, crd, to_yaml
from llmbudget.api.reference import reference
from llmbudget.cli.crds import command, generated

ROOT = Path(__file__).parents[3]
KNOWN = {
    "type",
    "description",
    "properties",
    "required",
    "items",
    "additionalProperties",
    "enum",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "x-kubernetes-validations",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
}

Schema = Mapping[str, Any]


def schema_of(kind: Kind) -> Schema:
    schema: Schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield from nodes(schema[inner], f"{path}[]")


ALL = [(path, node) for kind in KINDS for path, node in nodes(schema_of(kind), kind.name)]


def test_only_what_a_structural_schema_may_have() -> None:
    assert [(path, set(node) - KNOWN) for path, node in ALL if set(node) - KNOWN] == []


def test_every_node_has_a_type() -> None:
    assert [path for path, node in ALL if "type" not in node] == []


def test_every_property_is_described() -> None:
    bare = [
        path
        for path, node in ALL
        if not path.endswith("[]")
        and not node.get("description")
        # The API server describes metadata itself and refuses another text.
        and not re.fullmatch(r"\w+\.metadata", path)
    ]
    assert bare == []


@pytest.mark.parametrize(
    ("kind", "path", "ending"),
    [
        (0, "deployment.replicas", "Default: 1 (smb); 5 (enterprise); 15 (global); else 1."),
        (0, "budget.onExceeded", "Default: Block."),
        (0, "ledger.sqlite.storage", "Default: 10Gi."),
        (0, "monitoring.datadog.enabled", "Default: true (enterprise)."),
        (0, "network.ingressNamespaces", "operator's. Default: monitoring."),
        (1, "timeouts.idle", "Default: 60s."),
        (0, "deployment.image", "default: the operator's own."),
    ],
)
def test_defaults_are_told_and_those_of_profiles(kind: int, path: str, ending: str) -> None:
    node = crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for name in ("spec", *path.split(".")):
        node = node["properties"][name]
    assert node["description"].endswith(ending)
    assert "default" not in node


def test_descriptions_are_one_line() -> None:
    texts = [node["description"] for _, node in ALL if "description" in node]
    assert [text for text in texts if text != " ".join(text.split())] == []


def test_lists_and_strings_that_users_write_are_bounded() -> None:
    unbounded = [
        path
        for path, node in ALL
        if ".spec" in path
        and (
            (node["type"] == "array" and "maxItems" not in node)
            or (node["type"] == "string" and not {"maxLength", "enum"} & set(node))
            or ("additionalProperties" in node and "maxProperties" not in node)
        )
    ]
    assert unbounded == []


def test_integers_are_bounded_below() -> None:
    free = [
        path
        for path, node in ALL
        if ".spec" in path and node["type"] == "integer" and "minimum" not in node
    ]
    assert free == []


def test_no_float_anywhere() -> None:
    assert [path for path, node in ALL if node["type"] == "number"] == []


def test_patterns_mean_the_same_in_both_engines() -> None:
    """The API server reads them with RE2: no look-around, no back-references, whole text."""
    for path, node in ALL:
        if "pattern" in node:
            assert re.fullmatch(r"\^.*\$", node["pattern"]), path
            assert not re.search(r"\(\?[=!<]|\\[1-9dwb]", node["pattern"]), path


def test_every_rule_says_what_is_wrong() -> None:
    for path, node in ALL:
        for rule in node.get("x-kubernetes-validations", ()):
            assert set(rule) == {"rule", "message"}, path
            assert len(rule["message"]) > 20, path


WIDE_COLUMNS = ["Parent", "Remaining", "Lent", "Borrowed", "Reason"]


@pytest.mark.parametrize(
    ("index", "columns", "wide"),
    [
        (
            0,
            ["Cap", "Spent", "Used%", "Model", "Phase", "Ready", "Age", *WIDE_COLUMNS],
            WIDE_COLUMNS,
        ),
        (
            1,
            ["Protocol", "Models", "Endpoint", "Ready", "Age", "Reason"],
            ["Endpoint", "Reason"],
        ),
    ],
)
def test_printer_columns(index: int, columns: list[str], wide: list[str]) -> None:
    shown = crd(KINDS[index])["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [column["name"] for column in shown] == columns
    assert [column["name"] for column in shown if column.get("priority")] == wide


def test_names() -> None:
    budgets, providers = (crd(kind)["spec"] for kind in KINDS)
    assert budgets["names"]["shortNames"] == ["llmb"]
    assert providers["names"]["shortNames"] == ["llmp"]
    for spec in (budgets, providers):
        assert spec["names"]["categories"] == ["llm"]
        assert spec["scope"] == "Namespaced"
        assert spec["versions"][0]["subresources"] == {"status": {}}


def test_the_text_reads_back() -> None:
    for kind in KINDS:
        assert yaml.safe_load(to_yaml(crd(kind))) == crd(kind)


def test_the_reference_has_every_field_and_rule() -> None:
    text = reference(KINDS)
    for path, node in ALL:
        if re.match(r"\w+\.(spec|status)\.", path) and not path.endswith("[]"):
            assert f"`{path.rpartition('.')[2]}`" in text, path
        for rule in node.get("x-kubernetes-validations", ()):
            assert rule["message"] in text


def test_the_checkout_holds_what_is_generated() -> None:
    for path, text in generated().items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"make generate: {path}"


def test_generate_then_check(tmp_path: Path) -> None:
    run = CliRunner().invoke
    missing = run(command, ["generate", "--check", str(tmp_path)])
    assert missing.exit_code == 1
    assert not list(tmp_path.iterdir())
    assert run(command, ["generate", str(tmp_path)]).exit_code == 0
    assert run(command, ["generate", "--check", str(tmp_path)]).exit_code == 0
    stale = tmp_path / "docs" / "reference.md"
    stale.write_text("old", encoding="utf-8")
    refused = run(command, ["generate", "--check", str(tmp_path)])
    assert refused.exit_code == 1
    assert "reference.md: not as generated, run `llmbudget crds generate`" in refused.output
