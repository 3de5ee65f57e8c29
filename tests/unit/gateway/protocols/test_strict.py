"""Documents that parsers disagree on are refused, whatever their bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.gateway.protocols.strict import MAX_DEPTH, NotStrict, parse, serialise


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'{"a": "\xff"}',
        b"{'a': 1}",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "\\u0062": 2}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": "\x00"}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
)
def test_refused(body: bytes) -> None:
    with pytest.raises(NotStrict):
        parse(body)


@pytest.mark.parametrize("body", [b'{"a": "\\ud800"}', b'{"\\udfff": 1}', b'{"a": 1e999}'])
def test_what_cannot_be_written_again_is_refused(body: bytes) -> None:
    with pytest.raises(NotStrict):
        serialise(parse(body))


def test_the_deepest_nesting_is_read() -> None:
    body = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert serialise(parse(body)) == body


def test_many_brackets_need_not_be_deep() -> None:
    assert parse(b"[" + b"[]," * 1000 + b"[]]") == [[]] * 1001


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc\\u"), inner),
    max_leaves=30,
)


@given(values)
def test_json_is_read_and_written_unchanged(value: object) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(serialise(value)) == value


@given(st.binary() | st.text('[]{},:"\\u012eE-.nulltrefas').map(str.encode))
def test_arbitrary_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        value = parse(body)
        written = serialise(value)
    except NotStrict:
        return
    assert parse(written) == value
