"""Envelopes: money set aside for one task, and given back when it ends.

Opening one is a hold on the whole path that other holds are taken from: its amount counts as
`lent` on each account of the path, and what is charged in it moves from there to what is spent. So
nothing is charged twice, and what the envelope has can't be spent by others.

An envelope belongs to the month in which it was opened, and ends with it at the latest. What is
held then stays set aside until it is resolved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC
from typing import Final

from llmbudget.api.money import Nano, format_usd
from llmbudget.ledger.interface import (
    Envelope,
    EnvelopeClosed,
    EnvelopeExceeded,
    EnvelopeLimit,
    EnvelopeRequest,
    HoldRequest,
    RepeatedCall,
    UnknownEnvelope,
)
from llmbudget.ledger.months import Months
from llmbudget.ledger.records import KeyRow, checked

_KEY_SCOPE: Final = " envelopes"
"""After the name of a consumer, whose keys for envelopes are not those of its calls. No name of a
ServiceAccount has a space."""


class Envelopes(Months):
    """What can be done to envelopes, within one transaction."""

    def open_envelope(self, request: EnvelopeRequest) -> Envelope:
        """Set money aside on the whole path; see `Ledger.open_envelope`.

        Raises:
            ValueError: the amount is not above 0 or beyond what the ledger counts.
        """
        if not checked(request.amount, "amount"):
            raise ValueError("amount must be above 0")
        path = self._path(request.account)
        again = self._opened_before(request)
        if again is not None:
            return again
        self._refuse_unapproved(path)
        self._refuse_beyond_limits(request)
        self._refuse_exceeding(path, request.amount)
        now = self._clock().astimezone(UTC)
        envelope = Envelope(
            id=request.id,
            account=request.account,
            path=tuple(account.name for account in path),
            period=self.period,
            cap=request.amount,
            consumer=request.consumer,
            users=request.users,
            task_id=request.task_id,
            opened=now,
            expires=min(now + request.lifetime, self._current().end.astimezone(UTC)),
        )
        for name in envelope.path:
            self._changing(name, envelope.period).lent += envelope.cap
        self._keep(envelope)
        key = envelope_key(request)
        if key is not None:
            self.changes.keys[key] = KeyRow(*key, envelope.id, request.fingerprint, envelope.period)
        return envelope

    def _opened_before(self, request: EnvelopeRequest) -> Envelope | None:
        key = envelope_key(request)
        used = None if key is None else self._key(*key)
        if used is None:
            return self._envelope(request.id)
        if used.fingerprint != request.fingerprint:
            raise RepeatedCall(used.entry, None, same_request=False)
        return self._envelope(used.entry)

    def _refuse_beyond_limits(self, request: EnvelopeRequest) -> None:
        mine = [
            each
            for each in self.envelopes.values()
            if (each.account, each.consumer) == (request.account, request.consumer)
        ]
        if len(mine) >= request.most_open:
            raise EnvelopeLimit(
                request.account,
                f"{request.consumer} has {len(mine)} envelopes open, of {request.most_open}",
            )
        left = request.most_amount - sum(each.reserved for each in mine)
        if request.amount > left:
            raise EnvelopeLimit(
                request.account,
                f"{request.consumer} may set aside {format_usd(max(0, left))} USD more, of"
                f" {format_usd(request.most_amount)} USD",
            )

    def close_envelope(self, envelope_id: str, consumer: str) -> Envelope:
        """Give back what is left; see `Ledger.close_envelope`."""
        envelope = self._envelope(envelope_id)
        if envelope is None or envelope.consumer != consumer:
            raise UnknownEnvelope(f"{consumer} opened no envelope {envelope_id}")
        return self._end(envelope)

    def _opening(self, request: HoldRequest, amount: int) -> Envelope:
        """Find the envelope that a call is paid from, with room for it."""
        envelope = self._envelope(request.envelope or "")
        if envelope is None or request.consumer not in envelope.users:
            raise UnknownEnvelope(f"{request.consumer} may use no envelope {request.envelope}")
        if envelope.closed or envelope.account != request.account:
            raise EnvelopeClosed(f"envelope {envelope.id} is closed")
        if amount > envelope.left:
            raise EnvelopeExceeded(
                envelope.id,
                asked=Nano(amount),
                left=Nano(envelope.left),
                cap=Nano(envelope.cap),
                period=self._current(),
                only_held=amount <= envelope.left + envelope.held,
            )
        return envelope

    def _draw(self, envelope_id: str, *, spent: int, held: int) -> int:
        """Change what is spent and held in an envelope; tell what that adds to `lent` of its
        path."""
        envelope = self._envelope(envelope_id)
        if envelope is None:
            raise AssertionError(f"a hold names envelope {envelope_id}, and there is none")
        changed = replace(envelope, spent=envelope.spent + spent, held=envelope.held + held)
        self._keep(changed)
        return changed.reserved - envelope.reserved

    def end_moved(self) -> None:
        """Close the envelopes of accounts that have gone elsewhere in the tree."""
        for envelope in list(self.envelopes.values()):
            account = self.accounts.get(envelope.account)
            if account is None or not account.active:
                continue  # It grants nothing, and may come back before the envelope expires.
            if self._names_above(envelope.account) != envelope.path:
                self._end(envelope)

    def _names_above(self, name: str | None) -> tuple[str, ...]:
        names: list[str] = []
        while name is not None and name in self.accounts:
            names.append(name)
            name = self.accounts[name].parent
        return tuple(names)


def envelope_key(request: EnvelopeRequest) -> tuple[str, str] | None:
    """Name a request in the table of idempotency keys; None: it has no key."""
    key = request.idempotency_key
    return None if key is None else (request.consumer + _KEY_SCOPE, key)


def open_ones(envelopes: Iterable[Envelope]) -> dict[str, Envelope]:
    """Index the open ones by their ids."""
    return {envelope.id: envelope for envelope in envelopes if not envelope.closed}
