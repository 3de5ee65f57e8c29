"""What the ledger refuses, said in HTTP."""

from __future__ import annotations

from llmbudget.gateway.protocols import errors
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.ledger.interface import (
    AwaitingApproval,
    BudgetExceeded,
    EnvelopeClosed,
    EnvelopeExceeded,
    EnvelopeLimit,
    LedgerError,
    OutOfReach,
    RepeatedCall,
    UnknownEnvelope,
)


def refusal_of(error: LedgerError) -> Refusal:
    """Say in HTTP what the ledger refused."""
    if isinstance(error, BudgetExceeded):
        inside = isinstance(error, EnvelopeExceeded)
        if error.only_held:
            what = "Envelope" if inside else "Budget"
            message = f"{what} {error.account}: calls under way hold what is left."
            return errors.rate_limited(message, 2)
        if inside:
            return errors.envelope_exceeded(
                envelope=error.account, asked=error.asked, left=error.left, cap=error.cap
            )
        return errors.budget_exceeded(
            account=error.account,
            asked=error.asked,
            left=error.left,
            cap=error.cap,
            turns=error.period.end,
        )
    if isinstance(error, AwaitingApproval):
        return errors.awaiting_approval(
            account=error.account, period=error.period.name, turns=error.period.end
        )
    if isinstance(error, RepeatedCall):
        if error.same_request:
            return errors.repeated(error.entry_id, error.cost)
        return errors.reused_key(error.entry_id)
    if isinstance(error, UnknownEnvelope):
        return errors.no_envelope()
    if isinstance(error, EnvelopeClosed):
        return errors.forbidden("The envelope is closed, or has expired.", "envelope_closed")
    if isinstance(error, EnvelopeLimit):
        return errors.forbidden(f"Budget {error.account}: {error.message}.", "envelope_limit")
    if isinstance(error, OutOfReach):
        return errors.unavailable(
            f"Region {error.region} has spent what it was given of the budget, and the budget's"
            " database is out of its reach: no more can be had now."
        )
    return errors.unavailable("The ledger can't count money now.")
