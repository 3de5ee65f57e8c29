"""Whether a CustomResourceDefinition still takes all that a released one took.

What a released version accepted, and may have stored, must be accepted as it is by the next one.
Each schema keyword is known to allow more in one direction; of any other keyword that differs it
can't be told, so that it counts as a break.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

Schema = Mapping[str, Any]

_LOWER_BOUNDS: Final = ("minimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS: Final = ("maximum", "maxLength", "maxItems", "maxProperties")
_SAYS_NOTHING: Final = frozenset({"description", "title", "example", "externalDocs"})
_LOOSENED_BY_REMOVAL: Final = frozenset(
    {"pattern", "format", "multipleOf", "uniqueItems", "exclusiveMinimum", "exclusiveMaximum"}
)
"""Keywords that only ever refuse: without them more is accepted."""
_RULES: Final = "x-kubernetes-validations"
_TEXT: Final = re.compile("'[^']*'")
_IF_SET: Final = re.compile(r"!has\(self\.(\w+)\) \|\| ")


def breaks(released: Schema, now: Schema) -> list[str]:
    """List what a released definition allowed and this one does not, each with its place."""
    found = list(_of_definition(released["spec"], now["spec"]))
    versions = {version["name"]: version for version in now["spec"]["versions"]}
    for before in released["spec"]["versions"]:
        name = before["name"]
        if name not in versions:
            found.append(f"version {name}: removed")
            continue
        found += _of_version(name, before, versions[name])
    return found


def _of_definition(before: Schema, after: Schema) -> Iterator[str]:
    for key in ("group", "scope"):
        if before[key] != after[key]:
            yield f"{key}: {before[key]} became {after[key]}"
    for key in ("kind", "plural", "singular", "listKind"):
        was, is_now = before["names"].get(key), after["names"].get(key)
        if was != is_now:
            yield f"names.{key}: {was} became {is_now}"
    for key in ("shortNames", "categories"):
        for name in set(before["names"].get(key, ())) - set(after["names"].get(key, ())):
            yield f"names.{key}: {name} removed"


def _of_version(name: str, before: Schema, after: Schema) -> Iterator[str]:
    if before["served"] and not after["served"]:
        yield f"version {name}: no longer served"
    for subresource in set(before.get("subresources", {})) - set(after.get("subresources", {})):
        yield f"version {name}: subresource {subresource} removed"
    schemas = (version["schema"]["openAPIV3Schema"] for version in (before, after))
    yield from _of_schema("", *schemas)


def _of_schema(path: str, before: Schema, after: Schema) -> Iterator[str]:
    """Compare one place; a place that is new can't break anything."""
    where = path or "(root)"
    for key in sorted((set(before) | set(after)) - _SAYS_NOTHING - set(_NESTED)):
        was, is_now = before.get(key), after.get(key)
        if was != is_now and not _allows_more(key, was, is_now):
            yield f"{where}: {key} {_told(was)} became {_told(is_now)}"
    known = [_asked(rule) for rule in before.get(_RULES, ())]
    for rule in after.get(_RULES, ()):
        if _asked(rule) not in known and not _of_new_field(rule["rule"], before):
            yield f"{where}: new rule {rule['rule']}"
    for name in after.get("required", ()):
        if name not in before.get("required", ()):
            yield f"{_join(path, name)}: became required"
    for key, nested in _NESTED.items():
        yield from nested(path, before.get(key), after.get(key))


def _of_properties(path: str, before: Schema | None, after: Schema | None) -> Iterator[str]:
    for name, schema in (before or {}).items():
        place = _join(path, name)
        if name in (after or {}):
            yield from _of_schema(place, schema, (after or {})[name])
        else:
            yield f"{place}: field removed"


def _of_items(path: str, before: Schema | None, after: Schema | None) -> Iterator[str]:
    if before is not None and after is not None:
        yield from _of_schema(f"{path}[]", before, after)
    elif before != after:
        yield f"{path}[]: added or removed"


def _of_values(path: str, before: Any, after: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _of_schema(f"{path}{{}}", before, after)
    elif before and before != after:
        yield f"{path}{{}}: other keys no longer take the same values"


def _nothing(path: str, before: object, after: object) -> Iterator[str]:
    """Compared where their parent is."""
    return iter(())


_NESTED: Final[Mapping[str, Callable[[str, Any, Any], Iterator[str]]]] = {
    "properties": _of_properties,
    "items": _of_items,
    "additionalProperties": _of_values,
    "required": _nothing,
    _RULES: _nothing,
}


def _allows_more(key: str, was: Any, is_now: Any) -> bool:  # noqa: ANN401
    if key in _LOWER_BOUNDS:
        return is_now is None or (was is not None and is_now <= was)
    if key in _UPPER_BOUNDS:
        return is_now is None or (was is not None and is_now >= was)
    if key == "enum":
        return is_now is None or (was is not None and all(one in is_now for one in was))
    if key in ("nullable", "x-kubernetes-preserve-unknown-fields"):
        return bool(is_now)
    return key in _LOOSENED_BY_REMOVAL and not is_now


def _asked(rule: Schema) -> Schema:
    """What a rule asks for, without what is said when it is broken."""
    return {key: rule[key] for key in ("rule", "optionalOldSelf") if key in rule}


def _of_new_field(rule: str, before: Schema) -> bool:
    """Tell whether a rule asks something only where a field is set that did not exist."""
    field = _IF_SET.match(rule)
    # In `a || b ? c : d` the question is the outermost; in a text it is none.
    asks = "?" in _TEXT.sub("", rule)
    return field is not None and not asks and field[1] not in before.get("properties", ())


def _told(value: object) -> str:
    return "(none)" if value is None else str(value)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
