"""The OpenAPI document says what is served: no path and no field more, none less."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from llmbudget.gateway import app
from llmbudget.gateway.openapi import document
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.fields import UNKNOWN
from llmbudget.gateway.protocols.forms import File, write_form
from llmbudget.gateway.protocols.operation import Operation
from llmbudget.gateway.protocols.operations import OPERATIONS

DOCUMENT = document(OPERATIONS)
MESSAGES = [{"role": "user", "content": "hello"}]
LEAST = {"model": "small", "messages": MESSAGES, "input": "hello", "prompt": "hello"}


def refusal(operation: Operation, **fields: Any) -> str:
    """What is said to a body of all that it needs and these fields; empty: it is read."""
    least = {name: value for name, value in LEAST.items() if name in (operation.fields or ())}
    least |= {"max_tokens": 5} if operation.path == "/v1/messages" else {}
    body = json.dumps({**least, **fields}).encode()
    if operation.form:
        others = {name: value for name, value in fields.items() if name not in ("file", "model")}
        texts = [("model", "small"), *((name, str(value)) for name, value in others.items())]
        body = write_form("cut", texts, File("a.wav", "audio/wav", b"RIFF"))
    try:
        operation.parse(body)
    except Refusal as error:
        return str(error.message)
    return ""


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.path)
def test_the_fields_are_those_that_the_parser_knows(operation: Operation) -> None:
    assert refusal(operation) == ""
    assert operation.fields
    for name in operation.fields:
        said = refusal(operation, **{name: {"an": "object"}})
        assert f"Field {name} is refused: {UNKNOWN}" not in said
    everywhere = set().union(*(each.fields or () for each in OPERATIONS))
    for name in {*everywhere, "invented"} - operation.fields:
        assert f"Field {name} is refused" in refusal(operation, **{name: 1}), name


def test_the_paths_are_those_that_are_served() -> None:
    class Anything:
        def __getattr__(self, _: str) -> Any:
            return None

    parts: Any = dict.fromkeys(app.App.__init__.__kwdefaults__ or {})
    names = app.App.__init__.__annotations__.keys() - {"return"}
    made = app.App(**{name: parts.get(name, Anything()) for name in names})
    served = {(method.lower(), path) for method, path in made._handlers}
    described = {(method, path) for path, of in DOCUMENT["paths"].items() for method in of}
    by_prefix = {each for each in described if "{" in each[1]}
    assert described - by_prefix == served
    assert {re.sub(r"/\{.*", "/", path) for _, path in by_prefix} == {
        "/ledger/v1/calls/",
        "/ledger/v1/actions/",
        "/ledger/v1/envelopes/",
    }


def test_it_is_valid() -> None:
    import schemathesis

    assert len(list(schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())) == (
        len(OPERATIONS) + 13
    )
