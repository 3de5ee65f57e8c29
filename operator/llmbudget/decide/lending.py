"""Borrowing among siblings, after Kueue's cohorts, in nano-USD.

The children of one parent that have `borrowing` are a cohort. Each keeps its *guaranteed* part,
what is beyond its lending limit, for itself; the rest of all of them is one pool. Nobody reserves
what it might borrow: a loan is what is spent or held beyond one's own money, so a lender gets back
whatever is not, the moment that it asks.

With several lenders it makes no difference whose money was borrowed: all together have lent as much
as was borrowed, nobody more than its limit, and each figure follows from the others.

What a provider charged beyond a hold is borrowed too where siblings have it to lend. The rest of it
nobody lent: it stays the account's own debt. So does what a lender is charged beyond holds when its
money is with others, and none of them has as much idle: a loan that was granted stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Member:
    """One account of a cohort, in one period."""

    own: int
    """Its cap with all that raises it."""
    used: int
    """Spent, held, and set aside for tasks."""
    limit: int
    """Most that it borrows."""
    lending_limit: int | None
    """Most that it lends; None: all that is idle."""
    overage: int = 0
    """What of its use no room was asked for: charged beyond holds, or left by earlier periods."""

    @property
    def guaranteed(self) -> int:
        """What it never lends."""
        return 0 if self.lending_limit is None else max(0, self.own - self.lending_limit)

    @property
    def needs(self) -> int:
        """What it uses of the others' money, if they have it."""
        return min(self.limit, max(0, self.used - self.own))

    @property
    def granted(self) -> int:
        """What of that it asked for before it was used."""
        return min(self.needs, max(0, self.used - self.overage - self.own))

    @property
    def idle(self) -> int:
        """What others may use now; below 0: it is a borrower."""
        # What a provider charged beyond all limits is its own debt and no loan.
        return self._idle(self.used)

    @property
    def lendable(self) -> int:
        """What was idle before it was charged beyond holds: as much may have been lent by then."""
        return max(0, self._idle(self.used - self.overage))

    def _idle(self, used: int) -> int:
        used = min(used, self.own + self.limit)
        return self.own - self.guaranteed - max(0, used - self.guaranteed)


@dataclass(frozen=True, slots=True)
class Loans:
    """What one has of the others and they of it."""

    borrowed: int = 0
    lent: int = 0


class Cohort:
    """All that borrow of each other, at one instant, by their names."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members = dict(members)
        self._pool = sum(member.idle for member in members.values())

    def change(self, name: str, member: Member) -> None:
        """Take over where one stands now, without a look at the others."""
        self._pool += member.idle - self._members[name].idle
        self._members[name] = member
        self.__dict__.pop("loans", None)

    def room(self, name: str) -> int:
        """Tell how much more one may use; below 0: it is beyond its limits, beyond what the others
        have, or it was charged beyond holds what it had lent. Where caps were lowered below what is
        used, its guaranteed part is its own all the same."""
        member = self._members[name]
        if self._pool < 0:
            # Nothing is left to borrow: what it has of its own, less what others have of that.
            loans = self.loans[name]
            return member.own + loans.borrowed - member.used - loans.lent
        guaranteed = max(0, member.guaranteed - member.used)
        stored = member.own - member.guaranteed - max(0, member.used - member.guaranteed)
        return guaranteed + min(self._pool, stored + member.limit)

    @cached_property
    def loans(self) -> dict[str, Loans]:
        """Tell what each has borrowed and lent; the sums are equal. All that is lent, each lends
        its share of by what it has idle. Those come first who asked for what they use: they have
        it even where a lender was charged beyond holds since, and no other has it idle. What
        providers charged beyond holds is lent of what is idle after that."""
        members = self._members
        granted = {name: member.granted for name, member in members.items()}
        beyond = {name: member.needs - granted[name] for name, member in members.items()}
        idle = {name: max(0, member.idle) for name, member in members.items()}
        charged = {name: member.lendable - idle[name] for name, member in members.items()}
        there = sum(idle.values())
        first = _shares(granted, there + sum(charged.values()))
        then = _shares(beyond, max(0, there - sum(first.values())))
        lent = _shares(idle, sum(first.values()) + sum(then.values()))
        more = _shares(charged, max(0, sum(first.values()) - there))
        return {name: Loans(first[name] + then[name], lent[name] + more[name]) for name in members}


def _shares(wanted: Mapping[str, int], there: int) -> dict[str, int]:
    """Share what is there by what each wants, to the last nano-dollar; nobody gets more."""
    total = sum(wanted.values())
    there = min(there, total)
    found: dict[str, int] = {}
    before = reached = 0
    for name, amount in wanted.items():
        reached += amount
        up_to = there * reached // total if total else 0
        found[name] = up_to - before
        before = up_to
    return found
