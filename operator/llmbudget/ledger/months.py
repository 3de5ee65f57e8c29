"""How months end, what expires, which thresholds are crossed.

Periods. The current one is the clock's, in the time zone in force, and never goes back. When it
turns, each account's period is closed with what could be spent in it: what of its overage exceeds
that is posted to the new period as its debit, and what is unused, up to `rollover`, is carried
there too. A late settle that makes a debit more posts the difference, always to the current period:
in one that is over, a debit would hold nobody back. What was held when the month turned counts as
used: it is not carried, even where it is given back later.

Top-ups end with their month: unused money of theirs is not carried. Accounts that are left out of
the configuration when the month turns are closed and carried like all others, by their last terms:
whether they were deleted or found no room, they may come back.

Thresholds are evaluated for the current period only: a late settle of a closed month may make it
cross one, but nobody can act on that any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from llmbudget.api.money import Nano
from llmbudget.decide.periods import period_at
from llmbudget.decide.thresholds import crossed
from llmbudget.ledger.interface import ActionRow, Envelope
from llmbudget.ledger.records import LIMIT, Figures, Transfer, TransferKind
from llmbudget.ledger.rooms import Rooms

_INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class _Closing:
    """What could be spent in a period that ends, and what of it goes on."""

    cap: int | None
    unused: int


class Months(Rooms):
    """Moves what time moves, and charges."""

    def due(self, now: datetime) -> bool:
        """Tell whether a month has ended or something has expired."""
        current = self.header.period
        if current is None:
            return False
        return now >= self.alarm or period_at(now, self.header.time_zone).name > current

    def turn(self) -> None:
        """Go on to the clock's period if it is a later one, and end what has expired."""
        current = self.header.period
        if current is None:
            return
        now = self._clock()
        if now < self._turned:
            # A clock that was put back: what has expired by it holds again.
            self._standing.clear()
            self._cut_loans(self.accounts)
            self._set_alarm()
        self._turned = now
        # Only where the zone in force has left the month does the next zone have a say, and then
        # the later month of the two: otherwise a zone to the west would turn back.
        reached = period_at(now, self.header.time_zone).name
        if reached > current:
            reached = max(reached, period_at(now, self.header.next_time_zone).name)
            self._turn_to(reached)
        elif now >= self.alarm:
            self._expire(now)

    def _turn_to(self, reached: str) -> None:
        ended = self.period
        for envelope in list(self.envelopes.values()):
            self._end(envelope)
        closings = self._closings()
        self.header.period = reached
        self.header.time_zone = self.header.next_time_zone
        self.changes.header = True
        self.changes.keys_before = ended
        self._forget_cohorts()
        for name, closing in closings.items():
            figures = self._changing(name, ended)
            figures.closed = True
            figures.closing_cap = closing.cap
            self._carry(name, ended, figures)
            if closing.unused:
                self._roll(name, ended, closing.unused)
        self._set_alarm()
        self._evaluate(self.accounts)

    def _closings(self) -> dict[str, _Closing]:
        """Say of each account how its period ends, before anything of the next begins."""
        ended = self.period
        # As it was at the month's last instant: top-ups have not expired with it yet.
        last = min(self._clock(), self._current().end.astimezone(UTC) - _INSTANT)
        clock, self._clock = self._clock, lambda: last
        self._standing.clear()
        try:
            rolling = [a.name for a in self.accounts.values() if a.rollover]
            names = dict.fromkeys([*self._shelf.accounts_in(ended), *rolling])
            with self._survey():
                return {name: self._closing(name) for name in names}
        finally:
            self._clock = clock
            self._standing.clear()

    def _closing(self, name: str) -> _Closing:
        account, figures = self.accounts.get(name), self._now(name)
        own = None if account is None else self._own(account, figures)
        if account is None or own is None:
            return _Closing(None, 0)
        loans = self._loans(account)
        regular = own - self._topped_up(account)
        unused = min(account.rollover, max(0, regular - figures.used - loans.lent))
        return _Closing(min(own + loans.borrowed - loans.lent - unused, LIMIT), unused)

    def _carry(self, name: str, period: str, figures: Figures) -> None:
        due = figures.due
        if due:
            figures.carried += due
            self._changing(name, self.period).debit += due
            self._post(self._between(TransferKind.DEBIT, name, period, due, str(figures.carried)))

    def _roll(self, name: str, period: str, amount: int) -> None:
        self._changing(name, self.period).rolled += amount
        self._post(self._between(TransferKind.ROLLOVER, name, period, amount))

    def _between(
        self, kind: TransferKind, name: str, source: str, amount: int, part: str = ""
    ) -> Transfer:
        return Transfer(
            id="/".join((kind, name, source, part)).rstrip("/"),
            ts=self._clock().astimezone(UTC),
            kind=kind,
            account=name,
            period=self.period,
            amount=amount,
            source=source,
        )

    # Expiry

    def _expire(self, now: datetime) -> None:
        for envelope in list(self.envelopes.values()):
            if envelope.expires <= now:
                self._end(envelope)
        expired = [
            account.name
            for account in self.accounts.values()
            if account.active
            and any(t.period == self.period and t.expires <= now for t in account.top_ups)
        ]
        self._news.update(expired)
        self._standing.clear()
        self._set_alarm()
        self._evaluate(expired)

    def _end(self, envelope: Envelope) -> Envelope:
        """Close an envelope: what is not held goes back to its path."""
        if envelope.closed:
            return envelope
        ended = replace(envelope, closed=self._clock().astimezone(UTC))
        back = envelope.reserved - ended.reserved
        for name in ended.path:
            self._changing(name, ended.period).lent -= back
        self._cut_loans(ended.path)
        self._keep(ended)
        return ended

    # Charges

    def _charge(
        self, path: Sequence[str], period: str, *, spent: int, overage: int, held: int, lent: int
    ) -> None:
        for name in path:
            figures = self._changing(name, period)
            figures.spent += spent
            figures.overage += overage
            figures.held += held
            figures.lent += lent
            if figures.closed:
                self._carry(name, period, figures)
        self._cut_loans(path)
        self._evaluate(path)

    def _check_room(self, path: Sequence[str], period: str, cost: int) -> None:
        # A closed period may carry it on to the current one.
        periods = {period, self.period}
        for name in path:
            for each in periods:
                self._check_cost(cost, self._read(name, each))

    @staticmethod
    def _check_cost(cost: int, figures: Figures) -> None:
        if figures.total + cost >= LIMIT:
            raise ValueError("cost is beyond what the ledger counts")

    # Thresholds

    def _evaluate(self, names: Iterable[str]) -> None:
        """Write the actions of thresholds that are crossed in the current period."""
        for name in names:
            account = self.accounts.get(name)
            if account is None or not account.active or not account.thresholds:
                continue
            figures = self._now(name)
            own = self._own(account, figures)
            for threshold in crossed(account.thresholds, figures.total, own):
                key = f"{name} {self.period} {threshold.percentage}"
                action_id = uuid5(NAMESPACE_URL, key).hex
                if self._action(action_id) is None:
                    self._record(
                        ActionRow(
                            id=action_id,
                            account=name,
                            period=self.period,
                            percentage=threshold.percentage,
                            action=threshold.action,
                            spent=Nano(figures.total),
                            cap=Nano(min(own or 0, LIMIT)),
                            fired_at=self._clock().astimezone(UTC),
                            acknowledged=False,
                        )
                    )
