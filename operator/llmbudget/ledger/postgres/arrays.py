"""Columns as PostgreSQL reads arrays.

The driver looks at each value of a list for its type, which takes longer than all else that a call
costs here. What it is told as text is the database's to read, by the type that the statement names.
"""

from __future__ import annotations

from collections.abc import Iterable


def array(values: Iterable[object]) -> str:
    """Write texts, numbers, flags or instants."""
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)
