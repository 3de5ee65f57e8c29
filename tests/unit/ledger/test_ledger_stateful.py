"""Any sequence of operations, crashes and clocks against a model that adds up naively."""

import itertools
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.unit.ledger.ledger_helpers import (
    Clock,
    Engine,
    SqliteEngine,
    account,
    ask,
    task,
    within,
)

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.contract.config import BorrowingConfig, TopUpConfig
from llmbudget.decide.lending import Cohort, Member
from llmbudget.decide.periods import period_at, period_named
from llmbudget.ledger.interface import (
    BudgetExceeded,
    EnvelopeClosed,
    EnvelopeExceeded,
    Outcome,
    Settlement,
    UnknownAccount,
)

ROOT, TEAM, PEER, APP = "llm/org", "llm/team", "llm/peer", "app/app"
PATHS = {ROOT: (ROOT,), TEAM: (TEAM, ROOT), PEER: (PEER, ROOT), APP: (APP, TEAM, ROOT)}
SIBLINGS = (TEAM, PEER)
ZONES = ("UTC", "America/New_York", "Pacific/Auckland")
AMOUNTS = st.integers(0, 30)
CAPS = st.integers(20, 120) | st.integers(0, 20) | st.none()
ALL_CAPS = st.tuples(CAPS, CAPS, CAPS, CAPS)
LENDING = st.none() | st.tuples(st.integers(0, 60), st.none() | st.integers(0, 60))
GONE = st.sampled_from([(), (), (), (PEER,), (APP,), (TEAM, APP)])
ROLLOVERS = st.fixed_dictionaries({name: st.sampled_from([0, 0, 25, 500]) for name in PATHS})


@dataclass(frozen=True)
class Charge:
    """One attempt: a hold while `cost` is None, then an entry."""

    path: tuple[str, ...]
    period: str
    held: int
    cost: int | None = None
    unknown: bool = False
    envelope: str | None = None


@dataclass(frozen=True)
class Purse:
    """An envelope."""

    path: tuple[str, ...]
    period: str
    cap: int
    expires: datetime
    closed: bool = False


@dataclass(frozen=True)
class Grant:
    """A top-up."""

    account: str
    id: str
    amount: int
    period: str
    expires: datetime


class Crash(Exception):
    """The process dies within a transaction."""


class LedgerMachine(RuleBasedStateMachine):
    """Runs the same on the ledger and on the model."""

    clock: Clock
    engine: Engine

    @initialize(caps=ALL_CAPS)
    def open(self, caps):
        self.clock.now = Clock().now
        self.engine.clear()
        self.charges: dict[str, Charge] = {}
        self.purses: dict[str, Purse] = {}
        self.grants: list[Grant] = []
        self.debits: dict[tuple[str, str], int] = {}
        self.carried: dict[tuple[str, str], int] = {}
        self.rolled: dict[tuple[str, str], int] = {}
        self.closing_caps: dict[tuple[str, str], int | None] = {}
        self.caps = dict.fromkeys(PATHS)
        self.lending = dict.fromkeys(SIBLINGS)
        self.gone: tuple[str, ...] = ()
        self.kept: dict[tuple[str, str], tuple[int, int]] = {}
        self.rollover = dict.fromkeys(PATHS, 0)
        self.ids = (f"h{n}" for n in itertools.count())
        self.period, self.zone = "2026-11", "UTC"
        self.next_zone = "UTC"
        self.generation = 0
        self.store = self.engine.store()
        self.configure(caps, "UTC", (None, None), dict.fromkeys(PATHS, 0), ())

    def teardown(self):
        if hasattr(self, "store"):
            self.store.crash()
            assert not self.engine.audited().findings

    # The model

    def sums(self, name, period):
        """Spent within holds, overage, held, set aside."""
        mine = [c for c in self.charges.values() if name in c.path and c.period == period]
        done = [c for c in mine if c.cost is not None]
        spent = sum(min(c.cost, c.held) for c in done)
        overage = sum(max(0, c.cost - c.held) for c in done)
        held = sum(c.held for c in mine if c.cost is None and c.envelope is None)
        lent = sum(
            self.reserved(id)
            for id, purse in self.purses.items()
            if name in purse.path and purse.period == period
        )
        return spent, overage, held, lent

    def inside(self, id):
        """Spent from an envelope, and held."""
        mine = [c for c in self.charges.values() if c.envelope == id]
        spent = sum(c.cost for c in mine if c.cost is not None)
        return spent, sum(c.held for c in mine if c.cost is None)

    def reserved(self, id):
        purse, (spent, held) = self.purses[id], self.inside(id)
        return held if purse.closed else max(held, purse.cap - spent)

    def total(self, name, period):
        spent, overage, _, _ = self.sums(name, period)
        return spent + overage + self.debits.get((name, period), 0)

    def used(self, name, holds=True):
        _, _, held, lent = self.sums(name, self.period)
        return self.total(name, self.period) + (held if holds else 0) + lent

    def topped_up(self, name, now=None):
        return sum(
            grant.amount
            for grant in self.grants
            if (grant.account, grant.period) == (name, self.period)
            and (now or self.clock.now) < grant.expires
        )

    def own(self, name, now=None):
        cap = self.caps[name]
        if cap is None:
            return None
        return cap + self.rolled.get((name, self.period), 0) + self.topped_up(name, now)

    def cohort(self):
        return [
            name
            for name in SIBLINGS
            if self.caps[name] is not None
            and (self.terms_of(name) is not None or (name, self.period) in self.kept)
        ]

    def terms_of(self, name):
        return None if name in self.gone else self.lending[name]

    def limits(self, name):
        """Most that it borrows and lends: not less than it still has from before that was said."""
        limit, lends = self.terms_of(name) or (0, 0)
        borrowed, lent = self.kept.get((name, self.period), (0, 0))
        return max(limit, borrowed), None if lends is None else max(lends, lent)

    def fits(self, name, amount, holds=True):
        """I1, naively: whoever needs more than its own finds it at its siblings."""
        own = self.own(name)
        if own is None:
            return True
        if name not in self.cohort():
            return self.used(name, holds) + amount <= own
        need = give = 0
        for each in self.cohort():
            limit, lends = self.limits(each)
            mine = self.own(each)
            used = self.used(each, holds) + (amount if each == name else 0)
            if each == name and lends is not None and used <= mine - lends:
                return True
            if each == name and used > mine + limit:
                return False
            need += min(limit, max(0, used - mine))
            give += max(0, min(mine if lends is None else lends, mine - used))
        return need <= give or amount == 0

    def room_for(self, path, amount):
        return all(
            self.fits(each, amount) and (amount > 0 or self.fits(each, 1, holds=False))
            for each in path
        )

    def loans(self):
        """Who has how much of whom. How it is shared is the ledger's choice, and tried elsewhere:
        here it is only added up."""
        return Cohort(
            {
                name: Member(self.own(name), self.used(name), *self.limits(name), self.beyond(name))
                for name in self.cohort()
            }
        ).loans

    def beyond(self, name):
        return self.sums(name, self.period)[1] + self.debits.get((name, self.period), 0)

    def overdrawn(self, name):
        own = self.own(name)
        if own is None:
            return False
        if name in self.cohort():
            loan = self.loans()[name]
            own += loan.borrowed - loan.lent
        return self.used(name) > own

    def carry(self):
        """Post what closed months owe to the current one."""
        for (name, period), cap in self.closing_caps.items():
            if cap is None:
                continue
            beyond = self.sums(name, period)[1] + self.debits.get((name, period), 0)
            due = min(beyond, max(0, self.total(name, period) - cap))
            more = max(0, due - self.carried.get((name, period), 0))
            self.carried[name, period] = self.carried.get((name, period), 0) + more
            current = (name, self.period)
            self.debits[current] = self.debits.get(current, 0) + more

    def turn(self):
        """What the ledger does at the beginning of each transaction."""
        reached = period_at(self.clock.now, self.zone).name
        if reached > self.period:
            reached = max(reached, period_at(self.clock.now, self.next_zone).name)
            self.purses = {id: replace(p, closed=True) for id, p in self.purses.items()}
            self.give_back()
            self.end_month(reached)
        self.purses = {
            id: replace(p, closed=p.closed or p.expires <= self.clock.now)
            for id, p in self.purses.items()
        }
        self.give_back()

    def end_month(self, reached):
        end = period_named(self.period, self.zone).end.astimezone(UTC)
        last = min(self.clock.now, end - timedelta(microseconds=1))
        now, self.clock.now = self.clock.now, last
        loans, unused = self.loans(), {}
        for name in PATHS:
            own = self.own(name)
            borrowed = loans[name].borrowed if name in loans else 0
            lent = loans[name].lent if name in loans else 0
            unused[name] = 0
            if own is not None:
                left = own - self.topped_up(name) - self.used(name) - lent
                # Also of who is left out now, by the last terms.
                unused[name] = min(self.rollover[name], max(0, left))
                own += borrowed - lent - unused[name]
            self.closing_caps[name, self.period] = own
        self.clock.now = now
        self.period, self.zone = reached, self.next_zone
        for name, amount in unused.items():
            self.rolled[name, reached] = amount
        self.carry()

    def present(self, name):
        return name not in self.gone

    def resolve(self, id, cost, unknown=False):
        self.charges[id] = replace(self.charges[id], cost=cost, unknown=unknown)
        self.carry()
        self.give_back()

    def open_holds(self):
        return sorted(id for id, charge in self.charges.items() if charge.cost is None)

    # The rules

    @rule(
        caps=ALL_CAPS,
        zone=st.sampled_from(ZONES),
        lending=st.tuples(LENDING, LENDING),
        rollover=ROLLOVERS,
        gone=GONE,
    )
    def configure(self, caps, zone, lending, rollover, gone):
        self.keep_loans()
        self.gone = gone
        self.caps |= {n: cap for n, cap in zip(PATHS, caps, strict=True) if self.present(n)}
        self.lending = dict(zip(SIBLINGS, lending, strict=True))
        self.rollover |= {n: most for n, most in rollover.items() if self.present(n)}
        self.next_zone = zone
        self.send()

    def keep_loans(self):
        """What siblings have of each other when terms are changed stays till the month ends."""
        self.turn()
        for name, loan in (self.loans() if self.generation else {}).items():
            borrowed, lent = self.kept.get((name, self.period), (0, 0))
            both = max(borrowed, loan.borrowed), max(lent, loan.lent)
            self.kept[name, self.period] = both
        self.give_back()

    def give_back(self):
        """Of that, what a borrower needs no longer is given back for good."""
        kept = {name: both for (name, period), both in self.kept.items() if period == self.period}
        for name, (borrowed, lent) in kept.items():
            own = self.own(name)
            if own is not None:
                kept[name] = min(borrowed, max(0, self.used(name) - own)), lent
        standing = sum(borrowed for borrowed, _ in kept.values())
        self.kept = {
            (name, self.period): (borrowed, min(lent, standing))
            for name, (borrowed, lent) in kept.items()
            if borrowed or min(lent, standing)
        }

    def send(self):
        """Configure the ledger as the model is."""
        self.generation += 1
        steps = ((50, Action.DOWNGRADE_MODELS), (80, Action.NOTIFY_ADMIN))
        configs = []
        for name, path in PATHS.items():
            if name in self.gone:
                continue
            limits = self.lending.get(name)
            configs.append(
                account(
                    name,
                    self.caps[name],
                    path[1] if len(path) > 1 else None,
                    steps,
                    rollover_nano=self.rollover[name],
                    borrowing=limits
                    and BorrowingConfig(limit_nano=limits[0], lending_limit_nano=limits[1]),
                    top_ups=[
                        TopUpConfig(
                            id=grant.id,
                            amount_nano=grant.amount,
                            by="ada",
                            reason="why not",
                            expires=grant.expires,
                        )
                        for grant in self.grants
                        if grant.account == name
                    ],
                )
            )
        self.store.transact(
            lambda book: book.configure(
                configs, time_zone=self.next_zone, generation=self.generation
            )
        )
        self.give_back()

    @rule(
        name=st.sampled_from(sorted(PATHS)),
        amount=st.integers(1, 40),
        days=st.sampled_from([1, 10, 40]),
    )
    def top_up(self, name, amount, days):
        if name in self.gone:
            return
        self.keep_loans()
        expires = self.clock.now + timedelta(days=days)
        id = f"t{len(self.grants)}-{next(self.ids)}"
        self.grants.append(Grant(name, id, amount, self.period, expires))
        self.send()

    def grants_of_present_ones(self):
        return [grant for grant in self.grants if self.present(grant.account)]

    @precondition(lambda self: self.grants_of_present_ones())
    @rule(data=st.data())
    def take_top_up_back(self, data):
        self.keep_loans()
        self.grants.remove(data.draw(st.sampled_from(self.grants_of_present_ones())))
        self.send()

    @rule(name=st.sampled_from(sorted(PATHS)), amount=AMOUNTS, crash=st.booleans())
    def hold(self, name, amount, crash):
        self.turn()
        id = next(self.ids)
        room = self.room_for(PATHS[name], amount)

        def ask_for(book):
            try:
                granted = book.hold(ask(id, amount, name))
            except UnknownAccount:
                assert name in self.gone
                return False
            except BudgetExceeded:
                assert not room
                return False
            assert room, "I1"
            assert self.present(name)
            assert granted.period == self.period
            assert book.hold(ask(id, amount, name)) == granted, "what is left, counted once more"
            if crash:
                raise Crash
            return True

        try:
            granted = self.store.transact(ask_for)
        except Crash:
            self.reopen()
        else:
            if granted:
                self.charges[id] = Charge(PATHS[name], self.period, amount)

    @rule(
        name=st.sampled_from(sorted(PATHS)),
        amount=st.integers(1, 40),
        days=st.sampled_from([1, 40]),
        crash=st.booleans(),
    )
    def open_envelope(self, name, amount, days, crash):
        self.turn()
        id = next(self.ids)
        room = self.room_for(PATHS[name], amount)
        asked = task(id, amount, name, lifetime=timedelta(days=days))

        def open_one(book):
            try:
                opened = book.open_envelope(asked)
            except UnknownAccount:
                assert name in self.gone
                return None
            except BudgetExceeded:
                assert not room
                return None
            assert room, "I1"
            assert self.present(name)
            if crash:
                raise Crash
            return opened.expires

        try:
            expires = self.store.transact(open_one)
        except Crash:
            self.reopen()
        else:
            if expires is not None:
                self.purses[id] = Purse(PATHS[name], self.period, amount, expires)

    def open_purses(self):
        return sorted(id for id, purse in self.purses.items() if not purse.closed)

    @precondition(lambda self: self.open_purses())
    @rule(data=st.data())
    def close_envelope(self, data):
        id = data.draw(st.sampled_from(self.open_purses()))
        self.turn()
        closed = self.store.transact(lambda book: book.close_envelope(id, "team/lead"))
        assert closed.closed
        self.purses[id] = replace(self.purses[id], closed=True)
        self.give_back()

    @precondition(lambda self: self.purses)
    @rule(data=st.data(), amount=AMOUNTS)
    def hold_within(self, data, amount):
        envelope = data.draw(st.sampled_from(sorted(self.purses)))
        self.turn()
        id, purse = next(self.ids), self.purses[envelope]
        spent, held = self.inside(envelope)
        room = not purse.closed and amount <= max(0, purse.cap - spent - held)
        overdrawn = {each for each in purse.path if self.overdrawn(each)}

        def ask_for(book):
            try:
                granted = book.hold(within(envelope, id, amount, purse.path[0]))
            except UnknownAccount:
                assert purse.path[0] in self.gone
                return False
            except (EnvelopeClosed, EnvelopeExceeded):
                assert not room
                return False
            except BudgetExceeded as refused:
                over_its_cap = refused.account
                assert over_its_cap in overdrawn
                return False
            assert room, "I1"
            assert not overdrawn, "I1"
            assert book.hold(within(envelope, id, amount, purse.path[0])) == granted
            assert self.present(purse.path[0])
            return True

        if self.store.transact(ask_for):
            self.charges[id] = Charge(purse.path, self.period, amount, envelope=envelope)

    @precondition(lambda self: self.open_holds())
    @rule(
        data=st.data(),
        kind=st.sampled_from(["above", "at", "unknown", "below", "released"]),
        beyond=st.integers(1, 100),
    )
    def settle(self, data, kind, beyond):
        id = data.draw(st.sampled_from(self.open_holds()))
        held = self.charges[id].held
        cost = {"below": held // 2, "at": held, "above": held + beyond}.get(kind)
        self.turn()

        def resolve(book):
            if kind == "released":
                return book.release(id)
            return book.settle(id, Settlement(None if cost is None else Nano(cost)))

        entry = self.store.transact(resolve)
        self.resolve(id, {"unknown": held, "released": 0}.get(kind, cost), kind == "unknown")
        assert (entry.cost, entry.period) == (self.charges[id].cost, self.charges[id].period)

    @precondition(lambda self: any(c.cost is not None for c in self.charges.values()))
    @rule(data=st.data(), cost=st.integers(0, 150))
    def settle_again(self, data, cost):
        done = sorted(id for id, charge in self.charges.items() if charge.cost is not None)
        id = data.draw(st.sampled_from(done))
        self.turn()
        entry = self.store.transact(lambda book: book.settle(id, Settlement(Nano(cost))))
        charge = self.charges[id]
        if charge.unknown and cost > charge.held:
            self.resolve(id, cost)
        assert entry.cost == self.charges[id].cost

    @rule()
    def reopen(self):
        self.store.crash()
        self.store = self.engine.store()
        self.turn()
        for id in self.open_holds():
            self.resolve(id, self.charges[id].held, unknown=True)

    @rule(days=st.sampled_from([-40, 1, 20, 31, 70]), hours=st.integers(0, 23))
    def move_clock(self, days, hours):
        earliest = datetime(2026, 11, 2, tzinfo=UTC)
        self.clock.now = max(earliest, self.clock.now + timedelta(days=days, hours=hours))

    # What always holds

    @invariant()
    def sums_are_right(self):
        if not hasattr(self, "store"):
            return
        self.turn()
        balances = self.store.transact(lambda book: book.balances(PATHS))
        for name, balance in balances.items():
            assert balance.period.name == self.period
            assert balance.spent == self.total(name, self.period)
            assert balance.held == self.sums(name, self.period)[2]
            cap = self.own(name)
            assert balance.cap == cap
            assert balance.topped_up == (self.topped_up(name))
            crossed = cap is not None and balance.spent * 100 >= 50 * cap
            assert balance.level == (1 if crossed else 0)
            if cap is not None and self.present(name):
                assert self.fits(name, balance.remaining) or balance.remaining == 0
                assert not self.fits(name, balance.remaining + 1)
        lent = {name: b.lent - self.sums(name, self.period)[3] for name, b in balances.items()}
        borrowed = sum(balance.borrowed for balance in balances.values())
        assert sum(lent.values()) == borrowed

    @invariant()
    def every_attempt_has_one_row(self):
        if not hasattr(self, "store"):
            return
        entries = {
            row[0]: row[1:]
            for row in self.engine.query(
                f"SELECT id, {self.engine.path}, period, cost, held, outcome FROM entries"
            )
        }
        holds = {id for (id,) in self.engine.query("SELECT id FROM holds")}
        assert holds == set(self.open_holds())
        assert entries.keys() == self.charges.keys() - holds
        for id, (path, period, cost, held, outcome) in entries.items():
            charge = self.charges[id]
            assert (tuple(path.split()), period, cost, held) == (
                charge.path,
                charge.period,
                charge.cost,
                charge.held,
            )
            assert (outcome == Outcome.UNKNOWN) == charge.unknown
        for row in self.engine.query(
            "SELECT account, period, spent, overage, held, lent, debit, carried, rolled "
            "FROM account_periods"
        ):
            name, period, *figures = row
            debit = self.debits.get((name, period), 0)
            assert figures == [
                *self.sums(name, period),
                debit,
                self.carried.get((name, period), 0),
                self.rolled.get((name, period), 0),
            ]
        for id, closed, spent, held in self.engine.query(
            "SELECT id, closed IS NOT NULL, spent, held FROM envelopes"
        ):
            assert (spent, held) == self.inside(id)
            assert bool(closed) == self.purses[id].closed


@pytest.mark.slow
def test_ledger_against_a_model(engine, clock):
    run_state_machine_as_test(
        type("Machine", (LedgerMachine,), {"engine": engine, "clock": clock}),
        settings=settings(
            max_examples=200 if isinstance(engine, SqliteEngine) else 60,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
