"""Refusals in the caller's own protocol, so that its SDK raises the error its author knows.

The SDKs retry 408, 409, 429 and 5xx on their own; `x-should-retry: false` stops that where the
same call would only be refused again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from llmbudget.api.money import Nano, format_usd
from llmbudget.api.provider import Protocol
from llmbudget.decide.consumers import NoBudget
from llmbudget.decide.routing import NoRoute, Reason

Headers = list[tuple[str, str]]

_OPENAI_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    502: "api_error",
    503: "api_error",
    504: "timeout_error",
}
_OTHERWISE: Final = "invalid_request_error"


class Refusal(Exception):
    """A call that is answered here, without a byte going upstream."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        """Machine-readable reason."""
        self.message = message
        self.param = param
        """Field of the request that is at fault."""
        self.retry_after = retry_after
        """Seconds after which the same call may be granted; None: retrying is pointless."""
        self.details = dict(details or {})
        """Further fields of the error object."""


def render(refusal: Refusal, protocol: Protocol) -> tuple[int, Headers, bytes]:
    """Write a refusal as (status, headers, body)."""
    retry = refusal.retry_after is not None
    headers = [
        ("content-type", "application/json"),
        ("x-should-retry", "true" if retry else "false"),
    ]
    if retry:
        headers.append(("retry-after", str(refusal.retry_after)))
    if refusal.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    shape = _anthropic if protocol is Protocol.ANTHROPIC else _openai
    return refusal.status, headers, json.dumps(shape(refusal)).encode()


def _openai(refusal: Refusal) -> dict[str, object]:
    error = {
        "message": refusal.message,
        "type": _OPENAI_TYPES.get(refusal.status, _OTHERWISE),
        "param": refusal.param,
        "code": refusal.code,
    }
    return {"error": refusal.details | error}


def _anthropic(refusal: Refusal) -> dict[str, object]:
    kind = _ANTHROPIC_TYPES.get(refusal.status, _OTHERWISE)
    error = {"type": kind, "message": refusal.message, "code": refusal.code}
    return {"type": "error", "error": refusal.details | error}


def malformed(message: str, param: str | None = None, code: str = "invalid_request") -> Refusal:
    """400: the request can't be read, bounded or priced; `param` names the field."""
    return Refusal(400, code, message, param=param)


def unidentified(message: str) -> Refusal:
    """401: no token, or none that names a ServiceAccount for this gateway."""
    return Refusal(401, "invalid_api_key", message)


def budget_exceeded(
    *, account: str, asked: Nano, left: Nano, cap: Nano, turns: datetime
) -> Refusal:
    """402: what is spent leaves no room. `turns` is when the next month begins."""
    return Refusal(
        402,
        "insufficient_quota",
        f"Budget {account} has {format_usd(left)} USD left of {format_usd(cap)} USD and this call "
        f"may cost up to {format_usd(asked)} USD. A new month begins at {turns.isoformat()}.",
        details={
            "budget": account,
            "asked_usd": format_usd(asked),
            "left_usd": format_usd(left),
            "cap_usd": format_usd(cap),
            "resets_at": turns.isoformat(),
        },
    )


def envelope_exceeded(*, envelope: str, asked: Nano, left: Nano, cap: Nano) -> Refusal:
    """402: what is spent of an envelope leaves no room."""
    return Refusal(
        402,
        "insufficient_quota",
        f"Envelope {envelope} has {format_usd(left)} USD left of {format_usd(cap)} USD and this "
        f"call may cost up to {format_usd(asked)} USD. Open another one, or call without it.",
        details={
            "envelope": envelope,
            "asked_usd": format_usd(asked),
            "left_usd": format_usd(left),
            "cap_usd": format_usd(cap),
        },
    )


def awaiting_approval(*, account: str, period: str, turns: datetime) -> Refusal:
    """402: an executive intervention stops calls until the period is approved."""
    return Refusal(
        402,
        "insufficient_quota",
        f"Budget {account} waits for an approval of {period}: calls go on when its annotation "
        f"llmbudget.io/approved-period is {period}, or at {turns.isoformat()}.",
        details={"budget": account, "resets_at": turns.isoformat()},
    )


def downgraded_away(message: str, allowed: Sequence[str]) -> Refusal:
    """402: the ladder's step can't be called in this protocol; `allowed` still can."""
    return Refusal(402, "insufficient_quota", message, details={"allowed_models": list(allowed)})


def no_route(found: NoRoute) -> Refusal:
    """400, 402 or 403: no model can answer, for the reason that routing gives."""
    if found.reason is Reason.DOWNGRADED:
        return downgraded_away(found.message, found.choices)
    if found.reason is Reason.UNKNOWN:
        return forbidden(found.message, found.reason, found.choices)
    return malformed(found.message, param="model", code=found.reason)


def no_budget(found: NoBudget) -> Refusal:
    """403: no budget, or none in particular, is the caller's."""
    return forbidden(found.message, "no_budget", found.choices)


def forbidden(message: str, code: str, choices: Sequence[str] = ()) -> Refusal:
    """403: no budget or no model for this caller; `choices` are what it may name instead."""
    return Refusal(403, code, message, details={"choices": list(choices)} if choices else None)


def no_envelope() -> Refusal:
    """403: no envelope that this caller may use has the id that it names."""
    return forbidden("No envelope that you may use has this id.", "no_envelope")


def repeated(entry_id: str, cost: Nano | None) -> Refusal:
    """409: the idempotency key was used by this very call before. `cost` None: it is under way."""
    spent = {} if cost is None else {"cost_usd": format_usd(cost)}
    state = "is still under way" if cost is None else f"cost {format_usd(cost)} USD"
    return Refusal(
        409,
        "idempotency_key_repeated",
        f"This Idempotency-Key belongs to call {entry_id}, which {state}.",
        details={"entry_id": entry_id} | spent,
    )


def reused_key(entry_id: str) -> Refusal:
    """422: the idempotency key was used for another request."""
    return Refusal(
        422,
        "idempotency_key_reused",
        f"This Idempotency-Key was used for another request, call {entry_id}.",
        details={"entry_id": entry_id},
    )


def too_large(limit: int) -> Refusal:
    """413: the body has more than `limit` bytes."""
    return Refusal(413, "request_too_large", f"The body is larger than {limit} bytes.")


def rate_limited(message: str, retry_after: int) -> Refusal:
    """429: a rate limit, or room that other calls' holds take; true again in `retry_after` s."""
    return Refusal(429, "rate_limit_exceeded", message, retry_after=max(1, retry_after))


def unavailable(what: str, retry_after: int = 5) -> Refusal:
    """503: `what` (the ledger, a key, the identity service) is away; nothing is granted."""
    return Refusal(503, "unavailable", what, retry_after=max(1, retry_after))


def left_alone(provider: str, wait: float) -> Refusal:
    """503: the provider failed too often in a row and is tried again in `wait` seconds."""
    message = f"Provider {provider} keeps failing, so nothing was sent to it."
    return unavailable(message, math.ceil(wait))


def upstream_failed(status: int, message: str, retry_after: int | None = None) -> Refusal:
    """502 or 504: no provider answered. Say `retry_after` only where nothing was charged."""
    return Refusal(status, "upstream_failed", message, retry_after=retry_after)
