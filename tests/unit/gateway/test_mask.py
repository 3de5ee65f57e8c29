"""Keys are taken out of what goes back, in every spelling that reaches a caller as the key."""

from __future__ import annotations

import json
from base64 import b64encode
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.gateway.keys import MASK, longest_mask, mask

KEY = "sk-Canary/4f+1e9d8c7b6a=="
keys = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=12)


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        json.dumps(KEY)[1:-1],
        KEY.replace("/", "\\/"),
        KEY.replace("+", "\\u002b").replace("-", "\\u002D"),
        "".join(f"\\u{ord(character):04x}" for character in KEY),
        quote(KEY, safe=""),
        quote(KEY, safe="").replace("%2F", "%2f"),
    ],
)
def test_spellings(written: str) -> None:
    assert mask(f'{{"error": "{written}!"}}'.encode(), KEY) == b'{"error": "' + MASK + b'!"}'
    assert len(written) <= longest_mask(KEY)


@given(keys, st.binary(max_size=5), st.binary(max_size=5))
def test_base64_at_any_place(key: str, before: bytes, after: bytes) -> None:
    encoded = b64encode(before + key.encode() + after)
    assert MASK in mask(encoded, key)


@given(keys, st.text(max_size=20))
def test_no_decoding_gives_the_key_back(key: str, around: str) -> None:
    document = json.dumps({"message": f"{around}{key}{around}"}).encode()
    masked = mask(document, key)
    assert key.encode() not in masked
    assert key not in unquote(masked.decode())


def test_other_text_stays() -> None:
    text = b'{"usage": {"prompt_tokens": 1}, "content": "sk-Canary"}'
    assert mask(text, KEY) == text


@given(keys, st.lists(st.sampled_from(["\n", '"', "\\", "%", "n", "text"]), max_size=6))
def test_what_else_is_escaped_hides_no_key(key: str, around: list[str]) -> None:
    text = "".join(around)
    document = json.dumps({"message": f"{text}{key}{text}"}).encode()
    assert key.encode() not in mask(document, key)
