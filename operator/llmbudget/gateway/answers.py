"""From the provider's answer to the caller's, and what the call is charged.

A complete answer that says the call failed is released; a metered one is charged as metered; where
the provider may have worked and nobody knows for how much, all that is held is charged.
"""

from __future__ import annotations

import re
from typing import Final

from llmbudget.api.money import Nano, format_usd
from llmbudget.gateway.attempt import Attempt, Call, Failed
from llmbudget.gateway.failures import is_complete, least_charge
from llmbudget.gateway.keys import mask
from llmbudget.gateway.protocols import errors
from llmbudget.gateway.protocols.operation import CallRequest
from llmbudget.gateway.protocols.sse import RawMeter
from llmbudget.gateway.stream import relay
from llmbudget.gateway.upstream import Answer
from llmbudget.gateway.wire import Headers
from llmbudget.ledger.interface import Ledger, LedgerError, Status

_KEY_REFUSED: Final = frozenset({401, 403})
_CALLERS_FAULT: Final = frozenset({400, 405, 406, 409, 410, 411, 413, 414, 415, 416, 422})
"""Errors that another provider would answer too: they go back to the caller."""
_NOTHING: Final = Nano(0)
_HARMLESS: Final = re.compile(r"application/json\b|text/plain\b|text/vtt\b|audio/[-.+a-z0-9]+")


async def bring(
    ledger: Ledger, call: Call, asked: CallRequest, attempt: Attempt, answer: Answer
) -> Failed | None:
    """Bring the provider's answer to the caller, and charge it; None: the caller has it."""
    if answer.status != 200:
        return await _error_answer(call, attempt, answer)
    if answer.content_type.startswith("text/event-stream"):
        attempt.headers += _left(ledger, call, attempt)
        meter = asked.meter(attempt.plausible)
        await relay(attempt, answer, call.exchange, meter, call.count_tokens)
        return None
    content_type = _content_type(answer)
    if call.operation.answers_sound and content_type != "application/json":
        attempt.headers += _left(ledger, call, attempt)
        usage = asked.usage_of(b"", attempt.plausible)
        sound = RawMeter(usage, content_type)
        await relay(attempt, answer, call.exchange, sound, call.count_tokens)
        return None
    body = await answer.read()
    usage = attempt.believed(asked.usage_of(body, attempt.plausible))
    charged = attempt.costs(usage)
    headers = attempt.headers + _left(ledger, call, attempt, charged)
    headers += [("x-llmbudget-cost-usd", format_usd(charged))]
    headers += [("content-type", content_type)]
    call.exchange.response_bytes(200, headers, mask(body, attempt.key))
    if usage is not None:
        call.count_tokens(usage.tokens_in + usage.tokens_out)
    attempt.record.end(attempt.status, charged, usage, None if usage else "no usage")
    # Only now: the answer need not wait for it. Whatever is asked next is queued behind it, and
    # where it is lost, all that is held is charged.
    await attempt.charge(usage, charged)
    return None


def _left(ledger: Ledger, call: Call, attempt: Attempt, charged: Nano | None = None) -> Headers:
    """Tell what is left in the envelope or on the path, in dollars and in tokens of the
    model."""
    hold = attempt.held.hold
    given_back = 0 if charged is None else hold.amount - charged
    if call.envelope is not None:
        left = (hold.remaining or 0) + max(0, given_back)
    else:
        try:
            balances = [ledger.balance(account) for account in call.path]
        except LedgerError:
            # The budget was removed meanwhile: its last call is answered all the same.
            return []
        lefts = [found.remaining for found in balances if found.remaining is not None]
        if not lefts:
            return []
        left = max(0, min(lefts) + given_back)
    headers = [("x-llmbudget-remaining-usd", format_usd(left))]
    rate = max(attempt.prices.input, attempt.prices.output)
    if rate:
        headers.append(("x-llmbudget-remaining-tokens", str(int(left // rate))))
    return headers


async def _error_answer(call: Call, attempt: Attempt, answer: Answer) -> Failed | None:
    """Charge what an error may have cost; send it on where it is the caller's own."""
    why, status = f"status {answer.status}", answer.status
    if not is_complete(status):
        return await doubt(attempt, why, str(status))
    body = await answer.read()
    least = least_charge(attempt.offer.provider, status, body)
    key_refused = status in _KEY_REFUSED
    if status in _CALLERS_FAULT:
        charged = await _end(attempt, least, why, str(status))
        headers = [*attempt.headers, ("content-type", _content_type(answer))]
        headers += [("x-llmbudget-cost-usd", format_usd(charged)), ("x-should-retry", "false")]
        call.story.answered = status
        call.exchange.response_bytes(status, headers, mask(body, attempt.key))
        return None
    if least is not None:
        failed = await doubt(attempt, why, str(status), least)
        failed.key_refused = key_refused
        return failed
    await _end(attempt, None, why, str(status))
    name = attempt.offer.provider.name
    if status == 429:
        wait = _seconds(answer.retry_after)
        return Failed(errors.rate_limited(f"Provider {name} limits its rate.", wait))
    message = f"Provider {name} answered with status {status}."
    return Failed(errors.upstream_failed(502, message, 1), key_refused=key_refused)


async def doubt(attempt: Attempt, why: str, error: str, least: Nano = _NOTHING) -> Failed:
    """Charge in full, and `least` at least: the provider may have done the work."""
    charged = await _end(attempt, least, why, error)
    name = attempt.offer.provider.name
    message = f"Provider {name}: {why}. The call was charged {format_usd(charged)} USD."
    return Failed(errors.upstream_failed(502, message), charged=True)


async def _end(attempt: Attempt, least: Nano | None, why: str, error: str) -> Nano:
    """End an attempt that failed: charge its hold, or `least` where that is more. None: it was
    free."""
    attempt.status = Status.ERROR
    charged = Nano(0) if least is None else max(attempt.costs(None), least)
    if least is None:
        await attempt.held.release()
    else:
        await attempt.charge(None, charged)
    attempt.record.end(Status.ERROR, charged, None, why, error)
    return charged


def _content_type(answer: Answer) -> str:
    # Whatever a provider says, a browser must not take its answer for a page.
    found = _HARMLESS.match(answer.content_type)
    return found[0] if found else "application/octet-stream"


def _seconds(retry_after: str | None) -> int:
    seconds = retry_after or ""
    return int(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) <= 6 else 1
