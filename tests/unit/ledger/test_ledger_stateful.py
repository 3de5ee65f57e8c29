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
from tests.unit.ledger.ledger_helpers import Clock, Engine, SqliteEngine, account, ask

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.decide.periods import period_at
from llmbudget.ledger.interface import BudgetExceeded, Outcome, Settlement

ROOT, TEAM, APP = "llm/org", "llm/team", "app/app"
PATHS = {ROOT: (ROOT,), TEAM: (TEAM, ROOT), APP: (APP, TEAM, ROOT)}
ZONES = ("UTC", "America/New_York", "Pacific/Auckland")
AMOUNTS = st.integers(0, 30)
CAPS = st.integers(20, 120) | st.integers(0, 20) | st.none()


@dataclass(frozen=True)
class Charge:
    """One attempt: a hold while `cost` is None, then an entry."""

    path: tuple[str, ...]
    period: str
    held: int
    cost: int | None = None
    unknown: bool = False


class Crash(Exception):
    """The process dies within a transaction."""


class LedgerMachine(RuleBasedStateMachine):
    """Runs the same on the ledger and on the model."""

    clock: Clock
    engine: Engine

    @initialize(caps=st.tuples(CAPS, CAPS, CAPS))
    def open(self, caps):
        self.clock.now = Clock().now
        self.engine.clear()
        self.charges: dict[str, Charge] = {}
        self.debits: dict[tuple[str, str], int] = {}
        self.carried: dict[tuple[str, str], int] = {}
        self.closing_caps: dict[tuple[str, str], int | None] = {}
        self.ids = (f"h{n}" for n in itertools.count())
        self.period, self.zone = "2026-11", "UTC"
        self.generation = 0
        self.store = self.engine.store()
        self.configure(caps, "UTC")

    def teardown(self):
        if hasattr(self, "store"):
            self.store.crash()

    # The model

    def sums(self, name, period):
        """Spent within holds, overage, held."""
        mine = [c for c in self.charges.values() if name in c.path and c.period == period]
        done = [c for c in mine if c.cost is not None]
        spent = sum(min(c.cost, c.held) for c in done)
        overage = sum(max(0, c.cost - c.held) for c in done)
        return spent, overage, sum(c.held for c in mine if c.cost is None)

    def total(self, name, period):
        spent, overage, _ = self.sums(name, period)
        return spent + overage + self.debits.get((name, period), 0)

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
            for name in PATHS:
                self.closing_caps[name, self.period] = self.caps[name]
            self.period, self.zone = reached, self.next_zone
            self.carry()

    def resolve(self, id, cost, unknown=False):
        self.charges[id] = replace(self.charges[id], cost=cost, unknown=unknown)
        self.carry()

    def open_holds(self):
        return sorted(id for id, charge in self.charges.items() if charge.cost is None)

    # The rules

    @rule(caps=st.tuples(CAPS, CAPS, CAPS), zone=st.sampled_from(ZONES))
    def configure(self, caps, zone):
        self.generation += 1
        steps = ((50, Action.DOWNGRADE_MODELS), (80, Action.NOTIFY_ADMIN))
        parents = {ROOT: None, TEAM: ROOT, APP: TEAM}
        self.caps = dict(zip(PATHS, caps, strict=True))
        configs = [account(name, self.caps[name], parents[name], steps) for name in PATHS]
        if self.generation > 1:
            self.turn_with_old_caps()
        self.store.transact(
            lambda book: book.configure(configs, time_zone=zone, generation=self.generation)
        )
        self.next_zone = zone

    def turn_with_old_caps(self):
        new, self.caps = self.caps, getattr(self, "known_caps", self.caps)
        self.turn()
        self.caps = new

    @rule(name=st.sampled_from(sorted(PATHS)), amount=AMOUNTS, crash=st.booleans())
    def hold(self, name, amount, crash):
        self.turn()
        id = next(self.ids)
        room = all(
            self.caps[each] is None
            or (
                self.total(each, self.period) + self.sums(each, self.period)[2] + amount
                <= self.caps[each]
                and (amount > 0 or self.total(each, self.period) < self.caps[each])
            )
            for each in PATHS[name]
        )

        def ask_for(book):
            try:
                granted = book.hold(ask(id, amount, name))
            except BudgetExceeded:
                assert not room
                return False
            assert room, "I1"
            assert granted.period == self.period
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
        if not hasattr(self, "next_zone"):
            return
        self.known_caps = self.caps
        self.turn()
        balances = self.store.transact(lambda book: [book.balance(name) for name in PATHS])
        for name, balance in zip(PATHS, balances, strict=True):
            assert balance.period.name == self.period
            assert balance.spent == self.total(name, self.period)
            assert balance.held == self.sums(name, self.period)[2]
            cap = self.caps[name]
            crossed = cap is not None and balance.spent * 100 >= 50 * cap
            assert balance.level == (1 if crossed else 0)

    @invariant()
    def every_attempt_has_one_row(self):
        if not hasattr(self, "next_zone"):
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
            "SELECT account, period, spent, overage, held, debit, carried FROM account_periods"
        ):
            name, period, *figures = row
            debit = self.debits.get((name, period), 0)
            assert figures == [
                *self.sums(name, period),
                debit,
                self.carried.get((name, period), 0),
            ]


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
