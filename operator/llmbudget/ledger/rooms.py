"""How much room an account has, and who is refused for want of it.

For every account of a path, in the current period:

    spent + overage + debit + held + lent + new <= cap + borrowed + top-ups + rolled over
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from llmbudget.api.money import Nano
from llmbudget.decide.lending import Cohort, Loans, Member
from llmbudget.decide.thresholds import STOPPING, awaiting_approval, crossed, downgrade_level
from llmbudget.ledger.interface import AwaitingApproval, Balance, BudgetExceeded
from llmbudget.ledger.pages import Pages
from llmbudget.ledger.records import LIMIT, Account, Figures

_NONE: Final = Loans()


class Rooms(Pages):
    """Decides from accounts and their sums."""

    _surveyed: dict[str, Cohort] | None = None
    """Cohorts without their holds, while nothing changes."""

    def _topped_up(self, account: Account) -> int:
        return account.topped_up(self.period, self._clock()) if account.top_ups else 0

    def _own(self, account: Account, figures: Figures) -> int | None:
        """Tell what an account may spend of its own: its cap with all that raises it."""
        if account.cap is None:
            return None
        return account.cap + figures.rolled + self._topped_up(account)

    def _room(self, account: Account, *, held: bool = True) -> int | None:
        """Tell how much more may be held on an account; without `held`: if all holds were let go.
        None: it has no cap."""
        figures = self._now(account.name)
        own = self._own(account, figures)
        if own is None:
            return None
        parent = account.cohort(self.period)
        if parent is None:
            return own - figures.used + (0 if held else figures.held)
        return self._siblings(parent, held=held).room(account.name)

    def _siblings(self, parent: str, *, held: bool = True) -> Cohort:
        if held:
            self._follow_moves()
        known = self._standing if held else self._surveyed
        if known is not None and parent in known:
            return known[parent]
        cohort = Cohort({a.name: self._member(a, held=held) for a in self._cohort(parent)})
        if known is not None:
            known[parent] = cohort
        return cohort

    def _follow_moves(self) -> None:
        """Bring the cohorts that are known to where their members stand now."""
        moved, self._moved = self._moved, set()
        for name in moved:
            account = self.accounts.get(name)
            parent = None if account is None else account.cohort(self.period)
            cohort = None if parent is None else self._standing.get(parent)
            if account is not None and cohort is not None:
                cohort.change(name, self._member(account, held=True))

    def _member(self, account: Account, *, held: bool) -> Member:
        figures = self._now(account.name)
        limit, lending_limit = account.limits(self.period)
        return Member(
            own=self._own(account, figures) or 0,
            used=figures.used - (0 if held else figures.held),
            limit=limit,
            lending_limit=lending_limit,
            overage=figures.overage + figures.debit,
        )

    def _loans(self, account: Account) -> Loans:
        """Tell what an account has borrowed and lent."""
        parent = account.cohort(self.period)
        return _NONE if parent is None else self._siblings(parent).loans[account.name]

    def _cut_loans(self, names: Iterable[str]) -> None:
        """Cut the loans of former terms down to what was not given back: anew, it is lent by the
        terms in force."""
        accounts = [self.accounts[name] for name in names if name in self.accounts]
        loans = [each.loan_in(self.period) for each in accounts if each.loan is not None]
        if not loans:
            return
        for parent in {loan.parent for loan in loans if loan is not None}:
            still = [(each, self._still_borrowed(each)) for each in self._with_loans(parent)]
            standing = sum(borrowed for _, borrowed in still)
            for account, borrowed in still:
                assert account.loan is not None
                lent = min(account.loan.lent, standing)
                loan = replace(account.loan, borrowed=borrowed, lent=lent)
                if loan != account.loan:
                    self._put(replace(account, loan=loan if borrowed or lent else None))
                    self._news.add(account.name)

    def _still_borrowed(self, account: Account) -> int:
        """Tell what an account has of a loan of former terms; as long as it has no cap, all."""
        assert account.loan is not None
        figures = self._now(account.name)
        own = self._own(account, figures)
        borrowed = account.loan.borrowed
        return borrowed if own is None else min(borrowed, max(0, figures.used - own))

    def _fits(self, account: Account, amount: int, *, held: bool = True) -> bool:
        """Tell whether a call's bound has room. A free call has none where the cap is reached,
        unless the account lets free calls go on."""
        if amount == 0 and not account.blocks:
            return True
        room = self._room(account, held=held)
        if room is None:
            return True
        return amount <= room and (amount > 0 or (self._room(account, held=False) or 0) > 0)

    def _refuse_unapproved(self, path: Sequence[Account]) -> None:
        for account in path:
            if not account.thresholds:
                continue
            stops = [each for each in account.thresholds if each.action in STOPPING]
            if not stops:
                continue
            figures = self._now(account.name)
            reached = crossed(stops, figures.total, self._own(account, figures))
            if awaiting_approval(reached, account.approved_period, self.period):
                raise AwaitingApproval(account.name, self._current())

    def _refuse_exceeding(self, path: Sequence[Account], amount: int) -> Nano | None:
        """Hold against every cap of the path; where several have no room, one that waiting does
        not help goes first. Tells what will be left on the tightest account, as `_left` does."""
        refusals: list[BudgetExceeded] = []
        tightest: int | None = None
        for account in path:
            figures = self._now(account.name)
            if figures.used + amount >= LIMIT:
                raise ValueError("amount is beyond what the ledger counts")
            room = self._room(account)
            if room is None:
                continue
            tightest = room if tightest is None else min(room, tightest)
            if not 0 < amount <= room and not self._fits(account, amount):
                only_held = self._fits(account, amount, held=False)
                refusals.append(self._exceeded(account, amount, only_held=only_held))
        _raise_worst(refusals)
        # On an account of the path, what is granted takes as much from the room.
        return None if tightest is None else Nano(max(0, tightest - amount))

    def _refuse_overdrawn(self, path: Sequence[Account], amount: int) -> None:
        """Hold against every account of a path on which a call's money is set aside: none may be
        over its cap."""
        refusals: list[BudgetExceeded] = []
        for account in path:
            if (amount > 0 or account.blocks) and (self._room(account) or 0) < 0:
                only_held = (self._room(account, held=False) or 0) >= 0
                refusals.append(self._exceeded(account, amount, only_held=only_held))
        _raise_worst(refusals)

    def _exceeded(self, account: Account, amount: int, *, only_held: bool) -> BudgetExceeded:
        return BudgetExceeded(
            account.name,
            asked=Nano(amount),
            left=Nano(max(0, self._room(account) or 0)),
            cap=Nano(self._own(account, self._now(account.name)) or 0),
            period=self._current(),
            only_held=only_held,
        )

    def _left(self, path: Sequence[Account]) -> Nano | None:
        """Tell what is left on the tightest account of a path."""
        rooms = [room for room in map(self._room, path) if room is not None]
        return Nano(max(0, min(rooms))) if rooms else None

    def balances(self, names: Iterable[str]) -> dict[str, Balance]:
        """Tell where configured accounts stand in the current period."""
        with self._survey():
            return {name: self.balance(name) for name in names}

    @contextmanager
    def _survey(self) -> Iterator[None]:
        """Look at each cohort once: nothing changes meanwhile."""
        self._surveyed = {}
        try:
            yield
        finally:
            self._surveyed = None

    def balance(self, name: str) -> Balance:
        """Tell where a configured account stands in the current period."""
        account, figures = self.accounts[name], self._now(name)
        own = self._own(account, figures)
        reached = crossed(account.thresholds, figures.total, own) if account.thresholds else ()
        loans = self._loans(account)
        room, beside_holds = self._rooms(account, figures, own)
        return Balance(
            account=name,
            period=self._current(),
            cap=None if own is None else Nano(own),
            spent=Nano(figures.total),
            held=Nano(figures.held),
            level=downgrade_level(reached, account.steps),
            awaiting_approval=awaiting_approval(reached, account.approved_period, self.period),
            remaining=room,
            beside_holds=beside_holds,
            lent=Nano(figures.lent + loans.lent),
            borrowed=Nano(loans.borrowed),
            topped_up=Nano(self._topped_up(account)),
            rolled_over=Nano(figures.rolled),
        )

    def _rooms(
        self, account: Account, figures: Figures, own: int | None
    ) -> tuple[Nano | None, Nano | None]:
        """Tell how much more may be held on an account, and how much if all holds were let go."""
        if own is None:
            return None, None
        parent = account.cohort(self.period)
        if parent is None:
            room = own - figures.used
            return _not_below_0(room), _not_below_0(room + figures.held)
        room = self._siblings(parent).room(account.name)
        return _not_below_0(room), _not_below_0(
            self._siblings(parent, held=False).room(account.name)
        )

    def changed_accounts(self) -> set[str]:
        """List the configured accounts whose sums this transaction changed, or others before
        it, and those that lend to or borrow of them."""
        names = {name for name, period in self.changes.figures if period == self.period}
        names = (names | self._news) & self.accounts.keys()
        parents = {self.accounts[name].cohort(self.period) for name in names} - {None}
        for parent in parents:
            names |= {each.name for each in self._cohort(parent or "")}
        return {name for name in names if self.accounts[name].active}


def _raise_worst(refusals: Sequence[BudgetExceeded]) -> None:
    if refusals:
        raise min(refusals, key=lambda refusal: refusal.only_held)


def _not_below_0(room: int) -> Nano:
    return Nano(room if room > 0 else 0)
