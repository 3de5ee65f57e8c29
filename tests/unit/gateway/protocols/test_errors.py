"""Refusals are the errors that the callers' SDKs know, and say whether to try again."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from llmbudget.api.money import Nano
from llmbudget.api.provider import Protocol
from llmbudget.decide.consumers import NoBudget
from llmbudget.decide.routing import NoRoute, Reason
from llmbudget.gateway.protocols import errors
from llmbudget.gateway.protocols.errors import Refusal, render

TURNS = datetime(2026, 12, 1, tzinfo=UTC)
SPENT = errors.budget_exceeded(
    account="llm/team-a",
    asked=Nano(10_000_000),
    left=Nano(3_000_000),
    cap=Nano(100_000_000_000),
    turns=TURNS,
)


def openai(refusal: Refusal) -> dict[str, object]:
    return json.loads(render(refusal, Protocol.OPENAI)[2])["error"]


def headers(refusal: Refusal) -> dict[str, str]:
    return dict(render(refusal, Protocol.OPENAI)[1])


def test_a_spent_budget_in_openais_form() -> None:
    status, _, body = render(SPENT, Protocol.OPENAI)
    assert status == 402
    assert json.loads(body) == {
        "error": {
            "message": "Budget llm/team-a has 0.003 USD left of 100.00 USD and this call may cost "
            "up to 0.01 USD. A new month begins at 2026-12-01T00:00:00+00:00.",
            "type": "insufficient_quota",
            "param": None,
            "code": "insufficient_quota",
            "budget": "llm/team-a",
            "asked_usd": "0.01",
            "left_usd": "0.003",
            "cap_usd": "100.00",
            "resets_at": "2026-12-01T00:00:00+00:00",
        }
    }


def test_a_spent_budget_in_anthropics_form() -> None:
    document = json.loads(render(SPENT, Protocol.ANTHROPIC)[2])
    assert document["type"] == "error"
    assert document["error"]["type"] == "billing_error"
    assert document["error"]["left_usd"] == "0.003"


@pytest.mark.parametrize(
    ("refusal", "status", "in_openai", "in_anthropic", "retry_after"),
    [
        (errors.malformed("x", "n"), 400, "invalid_request_error", "invalid_request_error", None),
        (errors.unidentified("x"), 401, "authentication_error", "authentication_error", None),
        (SPENT, 402, "insufficient_quota", "billing_error", None),
        (
            errors.awaiting_approval(account="a/b", period="2026-11", turns=TURNS),
            *(402, "insufficient_quota", "billing_error", None),
        ),
        (errors.downgraded_away("x", ["m"]), 402, "insufficient_quota", "billing_error", None),
        (errors.forbidden("x", "y"), 403, "permission_error", "permission_error", None),
        (Refusal(404, "not_found", "x"), 404, "not_found_error", "not_found_error", None),
        (errors.repeated("e", Nano(1)), 409, "conflict_error", "invalid_request_error", None),
        (errors.too_large(5), 413, "invalid_request_error", "request_too_large", None),
        (errors.reused_key("e"), 422, "invalid_request_error", "invalid_request_error", None),
        (errors.rate_limited("x", 7), 429, "rate_limit_error", "rate_limit_error", "7"),
        (errors.rate_limited("x", 0), 429, "rate_limit_error", "rate_limit_error", "1"),
        (errors.unavailable("x"), 503, "server_error", "api_error", "5"),
        (errors.upstream_failed(502, "x"), 502, "server_error", "api_error", None),
        (errors.upstream_failed(504, "x", 1), 504, "server_error", "timeout_error", "1"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_every_refusal_has_its_status_type_and_retry(
    refusal: Refusal, status: int, in_openai: str, in_anthropic: str, retry_after: str | None
) -> None:
    assert refusal.status == status
    assert openai(refusal)["type"] == in_openai
    document = json.loads(render(refusal, Protocol.ANTHROPIC)[2])
    assert document["error"]["type"] == in_anthropic
    found = headers(refusal)
    assert found["content-type"] == "application/json"
    assert found["x-should-retry"] == ("false" if retry_after is None else "true")
    assert found.get("retry-after") == retry_after


def test_a_malformed_request_names_its_field() -> None:
    assert openai(errors.malformed("x", "n"))["param"] == "n"


def test_a_missing_identity_is_challenged() -> None:
    assert headers(errors.unidentified("x"))["www-authenticate"] == "Bearer"


def test_a_repetition_tells_its_entry_and_cost() -> None:
    assert openai(errors.repeated("e", Nano(5)))["cost_usd"] == "0.000000005"
    assert openai(errors.repeated("e", Nano(5)))["entry_id"] == "e"
    assert "cost_usd" not in openai(errors.repeated("e", None))


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (Reason.UNKNOWN, 403, "model_not_found"),
        (Reason.UNPRICED, 400, "model_unpriced"),
        (Reason.TOO_LONG, 400, "context_length_exceeded"),
        (Reason.DOWNGRADED, 402, "insufficient_quota"),
    ],
)
def test_routes_that_lead_nowhere_are_refused(reason: Reason, status: int, code: str) -> None:
    refusal = errors.no_route(NoRoute(reason, "why", ["m"]))
    assert (refusal.status, refusal.code, refusal.message) == (status, code, "why")


def test_a_downgrade_without_a_step_tells_what_is_still_allowed() -> None:
    refusal = errors.no_route(NoRoute(Reason.DOWNGRADED, "why", ["m"]))
    assert openai(refusal)["allowed_models"] == ["m"]


def test_a_caller_without_a_budget_is_told_its_choices() -> None:
    refusal = errors.no_budget(NoBudget("why", ["a/b", "a/c"]))
    assert (refusal.status, openai(refusal)["choices"]) == (403, ["a/b", "a/c"])
    assert "choices" not in openai(errors.no_budget(NoBudget("why", [])))
