"""JSON that every parser reads the same way.

What the gateway bounds and what the provider bills must be the same request. So documents that
parsers disagree on are refused: repeated keys, NaN and infinities, broken UTF-8, lone surrogates,
nesting that exhausts a stack.
"""

from __future__ import annotations

import json
import math
from typing import Final, NoReturn

from pydantic_core import PydanticSerializationError, to_json

MAX_DEPTH: Final = 64
"""Levels of nesting; real requests have 10, tool schemas seldom 20."""


MAX_VALUES: Final = 300_000
"""Values of a document, counted by commas and brackets, in texts too. Parsing them takes the time
of everybody else's calls."""


class NotStrict(ValueError):
    """The document is no strict JSON; the text says why, without quoting it."""


def parse(body: bytes) -> object:
    """Parse a document.

    Raises:
        NotStrict: it is none, or one that parsers disagree on.
    """
    if body.count(b",") + body.count(b"{") + body.count(b"[") > MAX_VALUES:
        raise NotStrict(f"The body has more than {MAX_VALUES} values")
    try:
        text = body.decode("utf-8")
        value: object = _DECODER.decode(text)
    except NotStrict:
        raise
    except UnicodeDecodeError:
        raise NotStrict("The body is not UTF-8") from None
    except RecursionError:
        raise NotStrict(f"The body is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise NotStrict(f"The body is no JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise NotStrict("The body has a number with too many digits") from None
    # Counting brackets settles all but large documents, far cheaper than a walk.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    return value


def serialise(value: object) -> bytes:
    """Write a parsed value compactly.

    Raises:
        NotStrict: it has half of a surrogate pair.
    """
    try:
        return to_json(value)
    except PydanticSerializationError:
        raise NotStrict("The body has half of a surrogate pair") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotStrict("The body repeats a key of an object")
    return found


def _refuse(_: str) -> NoReturn:
    raise NotStrict("The body has NaN or an infinity")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise NotStrict("The body has a number beyond the range of a double")
    return number


def _check_depth(value: object) -> None:
    """Walk level by level, since recursion is what deep nesting would exhaust."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise NotStrict(f"The body is nested deeper than {MAX_DEPTH} levels")


# Made once: json.loads makes a new one for each call with options.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse
)
