"""Borrowing among siblings, after Kueue's cohorts, in nano-USD.

The children of one parent that have `borrowing` are a cohort. Each keeps its *guaranteed* part,
what is beyond its lending limit, for itself; the rest of all of them is one pool. Nobody reserves
what it might borrow: a loan is what is spent or held beyond one's own money, so a lender gets back
whatever is not, the moment that it asks.

With several lenders it makes no difference whose money was borrowed: all together have lent as much
as was borrowed, nobody more than its limit, and each figure follows from the others.
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

    @property
    def guaranteed(self) -> int:
        """What it never lends."""
        return 0 if self.lending_limit is None else max(0, self.own - self.lending_limit)

    @property
    def borrowed(self) -> int:
        """What it uses of the others' money."""
        return min(self.limit, max(0, self.used - self.own))

    @property
    def idle(self) -> int:
        """What others may use now; below 0: it is a borrower."""
        # What a provider charged beyond all limits is its own debt and no loan.
        used = min(self.used, self.own + self.limit)
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
        """Tell how much more one may use; below 0: it is beyond its limits. Where caps were lowered
        below what is used, its guaranteed part is its own all the same."""
        member = self._members[name]
        guaranteed = max(0, member.guaranteed - member.used)
        stored = member.own - member.guaranteed - max(0, member.used - member.guaranteed)
        return guaranteed + min(max(0, self._pool), stored + member.limit)

    @cached_property
    def loans(self) -> dict[str, Loans]:
        """Tell what each has borrowed and lent: of all that was borrowed, its share by what it has
        idle. The sums are equal, unless caps were lowered below what was borrowed."""
        total = sum(max(0, member.idle) for member in self._members.values())
        borrowed = min(total, sum(member.borrowed for member in self._members.values()))
        found: dict[str, Loans] = {}
        before = reached = 0
        for name, member in self._members.items():
            reached += max(0, member.idle)
            up_to = borrowed * reached // total if total else 0
            found[name] = Loans(member.borrowed, up_to - before)
            before = up_to
        return found
