"""Changes of a schema, each with a value that was accepted before: breaks, and what is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One property of a spec before and after."""

    before: Schema
    after: Schema | None
    """None: the property is gone."""
    value: Any
    """Accepted before; refused or dropped after a break."""
    told: str = ""
    """What the check says of it after the property's path."""


def string(**keywords: Any) -> Schema:
    return {"type": "string", **keywords}


def integer(**keywords: Any) -> Schema:
    return {"type": "integer", **keywords}


def things(**keywords: Any) -> Schema:
    return {"type": "array", "items": string(maxLength=8), "maxItems": 8, **keywords}


def structure(**keywords: Any) -> Schema:
    return {"type": "object", "properties": {"a": string(maxLength=8)}, **keywords}


def values(inner: Schema, **keywords: Any) -> Schema:
    return {"type": "object", "additionalProperties": inner, "maxProperties": 8, **keywords}


def rule(text: str) -> Schema:
    return {"x-kubernetes-validations": [{"rule": text, "message": "no"}]}


NEVER = rule("self != 'x'")
BREAKS = {
    "removed": Change(string(), None, "x", ": field removed"),
    "retyped": Change(string(), integer(), "x", ": type string became integer"),
    "narrowed-enum": Change(
        string(enum=["x", "y"]), string(enum=["y"]), "x", ": enum ['x', 'y'] became ['y']"
    ),
    "new-enum": Change(string(), string(enum=["y"]), "x", ": enum (none) became ['y']"),
    "new-pattern": Change(string(), string(pattern="^y$"), "x", ": pattern (none) became ^y$"),
    "other-pattern": Change(
        string(pattern="^[xy]$"), string(pattern="^y$"), "x", ": pattern ^[xy]$ became ^y$"
    ),
    "new-format": Change(string(), string(format="date"), "x", ": format (none) became date"),
    "raised-minimum": Change(integer(minimum=1), integer(minimum=2), 1, ": minimum 1 became 2"),
    "new-minimum": Change(integer(), integer(minimum=2), 1, ": minimum (none) became 2"),
    "lowered-maximum": Change(integer(maximum=3), integer(maximum=2), 3, ": maximum 3 became 2"),
    "new-maximum": Change(integer(), integer(maximum=2), 3, ": maximum (none) became 2"),
    "new-step": Change(integer(), integer(multipleOf=2), 3, ": multipleOf (none) became 2"),
    "shorter": Change(string(maxLength=3), string(maxLength=2), "xxx", ": maxLength 3 became 2"),
    "longer": Change(string(), string(minLength=2), "x", ": minLength (none) became 2"),
    "fewer-items": Change(
        things(maxItems=2), things(maxItems=1), ["x", "y"], ": maxItems 2 became 1"
    ),
    "more-items": Change(things(), things(minItems=1), [], ": minItems (none) became 1"),
    "stricter-items": Change(
        things(),
        things(items=string(maxLength=1)),
        ["xx"],
        "[]: maxLength 8 became 1",
    ),
    "a-set": Change(
        things(),
        things(**{"x-kubernetes-list-type": "set"}),
        ["x", "x"],
        ": x-kubernetes-list-type (none) became set",
    ),
    "fewer-keys": Change(
        values(string()),
        values(string(), maxProperties=1),
        {"a": "x", "b": "y"},
        ": maxProperties 8 became 1",
    ),
    "stricter-values": Change(
        values(string()),
        values(string(maxLength=1)),
        {"a": "xx"},
        "{}: maxLength (none) became 1",
    ),
    "no-more-values": Change(
        values(string()),
        structure(maxProperties=8),
        {"b": "x"},
        "{}: other keys no longer take the same values",
    ),
    "newly-required": Change(structure(), structure(required=["a"]), {}, ".a: became required"),
    "new-required-field": Change(
        structure(),
        structure(properties={"a": string(maxLength=8), "b": string()}, required=["b"]),
        {"a": "x"},
        ".b: became required",
    ),
    "nested-field-removed": Change(
        structure(), structure(properties={"b": string()}), {"a": "x"}, ".a: field removed"
    ),
    "new-rule": Change(string(), string(**NEVER), "x", ": new rule self != 'x'"),
    "other-rule": Change(
        string(**rule("self != 'z'")), string(**NEVER), "x", ": new rule self != 'x'"
    ),
    "no-longer-null": Change(
        string(nullable=True), string(), None, ": nullable True became (none)"
    ),
    "no-longer-open": Change(
        {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        {"type": "object"},
        {"a": "x"},
        ": x-kubernetes-preserve-unknown-fields True became (none)",
    ),
}
HARMLESS = {
    "wider-enum": Change(string(enum=["x"]), string(enum=["x", "y"]), "x"),
    "no-enum": Change(string(enum=["x"]), string(), "x"),
    "no-pattern": Change(string(pattern="^x$"), string(), "x"),
    "lower-minimum": Change(integer(minimum=1), integer(minimum=0), 1),
    "no-maximum": Change(integer(maximum=1), integer(), 1),
    "more-length": Change(string(maxLength=1), string(maxLength=2), "x"),
    "new-field": Change(
        structure(), structure(properties={"a": string(maxLength=8), "b": string()}), {"a": "x"}
    ),
    "new-structure-with-a-required-field": Change(
        structure(),
        structure(
            properties={
                "a": string(maxLength=8),
                "b": structure(required=["a"]),
            }
        ),
        {"a": "x"},
    ),
    "no-longer-required": Change(structure(required=["a"]), structure(), {"a": "x"}),
    "no-rule": Change(string(**rule("self == 'x'")), string(), "x"),
    "another-message": Change(
        string(**rule("self == 'x'")),
        string(**{"x-kubernetes-validations": [{"rule": "self == 'x'", "message": "why"}]}),
        "x",
    ),
    "another-description": Change(string(description="a"), string(description="b"), "x"),
    "nullable": Change(string(), string(nullable=True), "x"),
}


def definition(changes: dict[str, Change], *, after: bool, group: str) -> Schema:
    """A definition whose spec has a property for each change, before or after it."""
    chosen = {
        name: schema
        for name, change in changes.items()
        if (schema := change.after if after else change.before) is not None
    }
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": chosen}},
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }
    names = {"kind": "Sample", "plural": "samples", "singular": "sample", "listKind": "SampleList"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"samples.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }
