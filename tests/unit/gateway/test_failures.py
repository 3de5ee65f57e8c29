"""Which errors cost nothing for certain, and what the others may have cost."""

from __future__ import annotations

import json

import pytest
from tests.support.offers import offer

from llmbudget.gateway.failures import is_complete, least_charge

AZURE = "team-a.openai.azure.com"


def error(code: object = None, message: str = "no") -> bytes:
    return json.dumps({"error": {"code": code, "message": message}}).encode()


FILTERED = json.dumps(
    {
        "error": {
            "code": "content_filter",
            "message": "The response was filtered due to the prompt triggering the policy.",
            "innererror": {"code": "ResponsibleAIPolicyViolation"},
        }
    }
).encode()
VIOLATION = json.dumps(
    {"code": "permission-denied", "error": "Content violates usage guidelines. Team: t"}
).encode()


def least(host: str, status: int, body: bytes, *, bills: bool | None = None) -> int | None:
    told = {"bills_errors": bills is True, "errors_by_host": bills is None}
    provider = offer(host=host).provider.model_copy(update=told)
    return least_charge(provider, status, body)


@pytest.mark.parametrize(
    ("status", "complete"),
    [
        *((200, False), (307, False), (400, True), (408, False), (429, True), (500, True)),
        *((502, False), (503, True), (504, False), (521, False), (529, True)),
    ],
)
def test_a_status_tells_whose_last_word_it_is(status: int, complete: bool) -> None:
    assert is_complete(status) is complete


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429])
@pytest.mark.parametrize("body", [b"", b"no", error(), FILTERED])
def test_a_refusal_is_free_where_nothing_else_is_documented(status: int, body: bytes) -> None:
    assert least("api.openai.com", status, body) is None
    assert least("api.openai.com", status, body, bills=True) == 0


@pytest.mark.parametrize(
    ("body", "charged"),
    [
        (error(), None),
        (b'{"type": "error", "error": {"type": "overloaded_error"}}', None),
        (b'{"object": "error", "message": "no"}', None),
        (b'{"error": "no"}', None),
        (b"[" + error(503, "This model is overloaded.") + b"]", None),
        (b'["error"]', 0),
        (error(message="x" * 2**20), 0),
        (b"upstream connect error or disconnect/reset before headers", 0),
        (b"<html>502 Bad Gateway</html>", 0),
        (b"", 0),
        (b"[]", 0),
        (b'{"message": "no healthy upstream"}', 0),
        (b"{" * 100_000, 0),
    ],
)
def test_a_failure_is_free_where_the_api_itself_tells_of_it(
    body: bytes, charged: int | None
) -> None:
    for status in (500, 503, 529):
        assert least("models.example", status, body) == charged
    assert least("models.example", 404, body) is None


@pytest.mark.parametrize(
    ("body", "charged"),
    [
        (FILTERED, 0),
        (error("context_length_exceeded"), 0),
        (error("string_above_max_length_of_everything!"), 0),
        (error(), 0),
        (error(7), 0),
        (error("invalid_prompt"), 0),
        (b"", 0),
        (b"<html>", 0),
        (error("unsupported_parameter"), None),
        (error("unknown_parameter"), None),
        (error("missing_required_parameter"), None),
        (error("invalid_value"), None),
        (error("invalid_type"), None),
        (error("integer_below_min_value"), None),
        (error("OperationNotSupported"), None),
    ],
)
def test_azure_charges_for_a_prompt_that_it_refuses_but_not_for_a_field(
    body: bytes, charged: int | None
) -> None:
    assert least(AZURE, 400, body) == charged
    assert least(AZURE, 400, body, bills=False) is None
    assert least(AZURE, 400, body, bills=True) == 0
    for free in (401, 404, 429):
        assert least(AZURE, free, body) is None


def test_xai_charges_a_fee_for_what_violates_its_guidelines() -> None:
    assert least("api.x.ai", 403, VIOLATION) == 50_000_000
    assert least("api.x.ai", 403, VIOLATION, bills=False) is None
    assert least("api.x.ai", 403, error(message="The key is blocked.")) is None
    assert least("api.openai.com", 403, VIOLATION) is None
