"""The check of CRDs against the released ones finds every kind of break, and only breaks."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.support.schema_changes import BREAKS, HARMLESS, definition

from llmbudget.api.compatibility import breaks
from llmbudget.api.crd import KINDS, crd, file_name, to_yaml
from llmbudget.cli.crds import command

Schema = dict[str, Any]
RELEASED = Path(__file__).parents[2] / "crd" / "released"


def compared(name: str, group: dict[str, Any]) -> list[str]:
    chosen = {name: group[name]}
    return breaks(*(definition(chosen, after=after, group="x") for after in (False, True)))


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_found(name: str) -> None:
    assert compared(name, BREAKS) == [f"spec.{name}{BREAKS[name].told}"]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_allows_more_is_none(name: str) -> None:
    assert compared(name, HARMLESS) == []


def unserved(version: Schema, _: Schema) -> None:
    version["served"] = False


def renamed(version: Schema, _: Schema) -> None:
    version["name"] = "v1beta1"


def without_status(version: Schema, _: Schema) -> None:
    del version["subresources"]


def of_another_kind(_: Schema, spec: Schema) -> None:
    spec["names"]["kind"] = "Budget"


def without_short_name(_: Schema, spec: Schema) -> None:
    spec["names"]["shortNames"] = []


def cluster_wide(_: Schema, spec: Schema) -> None:
    spec["scope"] = "Cluster"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (unserved, "version v1alpha1: no longer served"),
        (renamed, "version v1alpha1: removed"),
        (without_status, "version v1alpha1: subresource status removed"),
        (of_another_kind, "names.kind: LLMBudget became Budget"),
        (without_short_name, "names.shortNames: llmb removed"),
        (cluster_wide, "scope: Namespaced became Cluster"),
    ],
)
def test_a_break_of_the_definition(change: Callable[[Schema, Schema], None], told: str) -> None:
    before = crd(KINDS[0])
    after = deepcopy(before)
    change(after["spec"]["versions"][0], after["spec"])
    assert breaks(before, after) == [told]


def everywhere(schema: Schema, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths to all fields of a schema."""
    found = []
    for name, inner in schema.get("properties", {}).items():
        place = (*path, "properties", name)
        found += [place, *everywhere(inner, place)]
    if "items" in schema:
        found += everywhere(schema["items"], (*path, "items"))
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_field_of_ours_is_missed(kind: Any) -> None:
    before = crd(kind)
    schema = before["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for *way, name in everywhere(schema):
        after = deepcopy(before)
        node = after["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for step in way:
            node = node[step]
        del node[name]
        (told,) = breaks(before, after)
        assert told.endswith(f"{name}: field removed")


@pytest.mark.parametrize(
    ("text", "known", "told"),
    [
        ("!has(self.b) || self.b != self.a", (), []),
        ("!has(self.b) || self.b == 'x' ? self.a == 'x' : false", (), ["x: new rule"]),
        ("!has(self.b) || self.b != self.a", ("b",), ["x: new rule"]),
        ("has(self.b) || self.a == 'x'", (), ["x: new rule"]),
    ],
)
def test_a_rule_of_a_field_that_did_not_exist(
    text: str, known: tuple[str, ...], told: list[str]
) -> None:
    before = crd(KINDS[0])
    after = deepcopy(before)
    for document, names in ((before, ("a", *known)), (after, ("a", "b"))):
        schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        schema["properties"]["x"] = {"properties": {name: {"type": "string"} for name in names}}
    schema["properties"]["x"]["x-kubernetes-validations"] = [{"rule": text, "message": "no"}]
    assert [line[:11] for line in breaks(before, after)] == told


def compare(folder: Path) -> tuple[int, str]:
    result = CliRunner().invoke(command, ["compare", str(folder)])
    return result.exit_code, result.output


def test_the_released_resources_are_still_taken() -> None:
    assert compare(RELEASED) == (0, "")


def test_a_break_that_is_meant_is_written_down(tmp_path: Path) -> None:
    for kind in KINDS:
        released = crd(kind)
        schema = released["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        schema["properties"]["spec"]["properties"]["former"] = {"type": "string"}
        (tmp_path / file_name(kind)).write_text(to_yaml(released))
    lines = [f"{kind.plural}.llmbudget.io: spec.former: field removed" for kind in KINDS]
    code, said = compare(tmp_path)
    assert code == 1
    assert all(line in said for line in lines)
    assert "accepted.txt" in said
    (tmp_path / "accepted.txt").write_text("\n".join(lines))
    assert compare(tmp_path) == (0, "")
    (tmp_path / "accepted.txt").write_text("\n".join([*lines, "something else"]))
    code, said = compare(tmp_path)
    assert code == 1
    assert "no longer so: something else" in said


def test_a_copy_of_each_kind_is_kept() -> None:
    for kind in KINDS:
        kept = yaml.safe_load((RELEASED / file_name(kind)).read_text())
        assert kept["spec"]["names"]["kind"] == kind.name
