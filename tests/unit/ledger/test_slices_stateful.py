"""Any sequence of calls, lost messages, crashes and months over an authority and three regions."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.support.postgres_server import PostgresServer
from tests.unit.ledger.ledger_helpers import Clock, PostgresEngine, account, ask

from llmbudget.api.money import Nano
from llmbudget.ledger.interface import BudgetExceeded, Settlement
from llmbudget.ledger.operations import Subject
from llmbudget.ledger.postgres.connection import Database
from llmbudget.ledger.postgres.migrations import migrate
from llmbudget.ledger.postgres.rows import Rows
from llmbudget.ledger.postgres.store import Store
from llmbudget.ledger.records import Holder
from llmbudget.ledger.regions.authority import AuthorityBook
from llmbudget.ledger.regions.local import RegionalBook
from llmbudget.ledger.regions.messages import TablesReplaced, Told

ROOT, TEAM, APP = "llm/org", "llm/team", "app/app"
PATHS = {ROOT: (ROOT,), TEAM: (TEAM, ROOT), APP: (APP, TEAM, ROOT)}
NAMES = ("eu", "us", "ap")
REGIONS = st.sampled_from(NAMES)
ACCOUNTS = st.sampled_from([ROOT, TEAM, APP])
AMOUNTS = st.integers(0, 40)
CAPS = st.tuples(st.integers(0, 400), st.none() | st.integers(0, 300), st.none())


@dataclass
class Region:
    """One region's database, and what is on its way from it."""

    name: str
    engine: PostgresEngine
    store: Store
    other: Store
    """Of a gateway that stays when all is made anew."""
    holder: Holder
    shipped: int = 0
    """What it was told to be booked."""
    under_way: list[Told] = field(default_factory=list)
    """Messages, that may come late or twice."""
    calls: dict[str, int | None] = field(default_factory=dict)
    """Costs of its calls; None: under way."""


class RegionsMachine(RuleBasedStateMachine):
    clock: Clock
    engines: dict[str, PostgresEngine]

    @initialize(caps=CAPS)
    def open(self, caps):
        self.clock.now = Clock().now
        self.ids = (f"h{n}" for n in itertools.count())
        self.generation = 0
        self.lost: dict[str, int] = {}
        """Costs of calls whose rows went with their database."""
        for engine in self.engines.values():
            empty(engine)
        self.authority = self.started("authority", AuthorityBook)
        self.central: dict[str, int | None] = {}
        self.regions: dict[str, Region] = {}
        self.configs = []
        self.configure(caps)
        for name in NAMES:
            self.make(name)

    def started(self, name, book):
        database = Database(self.engines[name].file)
        store = Store(
            database, f"llm/{name}", lambda _: self.clock.now, 0.0, book, region_seconds=1e9
        )
        store.transact(lambda _: None)
        return store

    def make(self, name):
        engine = self.engines[name]
        store = self.started(name, RegionalBook)
        (incarnation,) = engine.query("SELECT incarnation FROM ledger")[0]
        stays = self.regions[name].other if name in self.regions else None
        other = stays or self.started(name, RegionalBook)
        self.regions[name] = Region(name, engine, store, other, Holder(incarnation, name))
        self.follow(self.regions[name])

    def follow(self, region):
        period = self.authority.transact(lambda book: book.period).result
        region.store.transact(
            lambda book: book.follow(
                self.configs, time_zone="UTC", generation=self.generation, period=period
            )
        )

    def teardown(self):
        if not hasattr(self, "regions"):
            return
        for region in self.regions.values():
            region.store.transact(lambda book: book.sweep(list(book.holds.values())))
            region.calls |= {
                id: cost
                for id, cost in region.engine.query("SELECT id, cost FROM entries")
                if region.calls.get(id, 0) is None
            }
            for _ in range(2):
                self.ship(region, rows=500)
                self.deliver(region, region.under_way[-1])
            self.check_told(region)
        self.check_rows()
        for store in self.stores():
            store.close()
        for engine in self.engines.values():
            found = engine.audited().findings
            assert not found, [str(each) for each in found]

    def stores(self):
        regions = self.regions.values()
        return (
            self.authority,
            *(each.store for each in regions),
            *(each.other for each in regions),
        )

    def check_rows(self):
        """One row a call, each with the cost that the region knows; what went with a database is
        among what is charged as unknown."""
        rows = self.engines["authority"].query("SELECT id, cost, provider FROM entries")
        booked = {id: cost for id, cost, provider in rows if provider != "slice"}
        assert len(booked) == len([row for row in rows if row[2] != "slice"])
        expected = dict(self.central)
        for region in self.regions.values():
            expected |= region.calls
        known = {id: cost for id, cost in expected.items() if cost is not None}
        assert {id: booked.get(id) for id in known} == known
        unknown = sum(cost for _, cost, provider in rows if provider == "slice")
        gone = sum(cost for id, cost in self.lost.items() if id not in booked)
        assert gone <= unknown

    def check_told(self, region):
        """What was told is known on both sides alike."""
        for row in self.slices(region):
            account_, period, granted, shipped, returned, unknown = row
            spent, funded, back = self.figures(region, account_, period)
            assert granted >= funded
            assert (shipped, returned) == (spent, back)
            assert granted - shipped - returned - unknown >= 0

    def slices(self, region):
        return self.engines["authority"].query(
            "SELECT account, period, granted, shipped, returned, unknown FROM slices "
            f"WHERE holder = '{region.holder.id}'"
        )

    def figures(self, region, name, period):
        found = region.engine.query(
            "SELECT spent, granted, returned FROM account_periods "
            f"WHERE account = '{name}' AND period = '{period}'"
        )
        return found[0] if found else (0, 0, 0)

    # The budget

    @rule(caps=CAPS)
    def configure(self, caps):
        self.generation += 1
        self.configs = [
            account(ROOT, caps[0]),
            account(TEAM, caps[1], ROOT),
            account(APP, caps[2], TEAM),
        ]
        self.authority.transact(
            lambda book: book.configure(self.configs, time_zone="UTC", generation=self.generation)
        )
        for region in self.regions.values():
            self.follow(region)

    @rule()
    def month_turns(self):
        self.clock.now += timedelta(days=31)
        self.authority.transact(lambda _: None)

    @rule(name=ACCOUNTS, amount=AMOUNTS)
    def call_centrally(self, name, amount):
        id = next(self.ids)
        try:
            self.authority.transact(lambda book: book.hold(ask(id, amount, name)))
        except BudgetExceeded:
            return
        self.central[id] = None
        self.check_caps(name)

    @precondition(lambda self: None in self.central.values())
    @rule(cost=AMOUNTS)
    def settle_centrally(self, cost):
        id = next(id for id, known in self.central.items() if known is None)
        done = Settlement(cost=Nano(cost))
        self.central[id] = self.authority.transact(
            lambda book: book.settle(id, done), [Subject(id)]
        ).result.cost

    def check_caps(self, name):
        """What has just been granted has room (I1)."""

        def check(book):
            for each in PATHS[name]:
                own = book._own(book.accounts[each], book._now(each))
                assert own is None or book._now(each).used <= own

        self.authority.transact(check)

    # Calls in regions

    def grant(self, region, name, amount):
        granted = self.authority.transact(
            lambda book: book.grant(region.holder, name, amount, amount),
            [Subject(holder=region.holder.id)],
        ).result
        self.check_caps(name)
        return granted

    @rule(region=REGIONS, name=ACCOUNTS, amount=AMOUNTS, linked=st.booleans(), heard=st.booleans())
    def call(self, region, name, amount, linked, heard):
        region, id = self.regions[region], next(self.ids)
        for last in (False, True):
            try:
                region.store.transact(lambda book: book.hold(ask(id, amount, name)))
            except BudgetExceeded:
                if last or not linked:
                    return
                try:
                    granted = self.grant(region, name, amount)
                except BudgetExceeded:
                    return
                if not heard:
                    return  # The answer was lost, or the gateway died.
                region.store.transact(
                    lambda book, granted=granted: book.fund(name, granted.period, granted.total)
                )
            else:
                region.calls[id] = None
                return

    def open_of(self, region):
        return [id for id, cost in region.calls.items() if cost is None]

    @rule(region=REGIONS, cost=st.none() | AMOUNTS, beyond=st.integers(0, 3), late=st.booleans())
    def settle(self, region, cost, beyond, late):
        region = self.regions[region]
        ids = list(region.calls) if late else self.open_of(region)
        if not ids:
            return
        id = ids[-1]
        done = Settlement(cost=None if cost is None else Nano(cost + 40 * (beyond == 3)))
        region.calls[id] = region.store.transact(
            lambda book: book.settle(id, done), [Subject(id)]
        ).result.cost

    @rule(region=REGIONS)
    def release(self, region):
        region = self.regions[region]
        if ids := self.open_of(region):
            region.store.transact(lambda book: book.release(ids[0]), [Subject(ids[0])])
            region.calls[ids[0]] = 0

    # What is told

    @rule(region=REGIONS, rows=st.integers(0, 5))
    def ship(self, region, rows):
        region = region if isinstance(region, Region) else self.regions[region]
        with Database(region.engine.file).connect() as connection:
            reader = Rows(connection)
            found = reader.entries(region.shipped, rows)
            returned = {(a, p): figures.returned for a, p, figures in reader.funded("")}
        region.under_way.append(Told(region.shipped, found, returned))

    @rule(region=REGIONS, index=st.integers(0, 100), heard=st.booleans())
    def arrive(self, region, index, heard):
        """Messages come in any order, some twice, some never; so do the answers."""
        region = self.regions[region]
        if region.under_way:
            told = region.under_way[index % len(region.under_way)]
            self.deliver(region, told, heard)

    def deliver(self, region, told, heard=True):
        answer = self.authority.transact(
            lambda book: book.hear(region.holder, told), [Subject(holder=region.holder.id)]
        ).result
        if heard:
            region.shipped = answer.shipped_seq

            def take(book):
                book.reach(answer.period)
                for (name, period), each in answer.slices.items():
                    book.fund(name, period, each.granted)

            region.store.transact(take)

    @rule(region=REGIONS, name=ACCOUNTS, amount=AMOUNTS)
    def give_back(self, region, name, amount):
        self.regions[region].store.transact(
            lambda book: book.give_back([(name, book.period)], lambda _: amount)
        )

    # What fails

    @rule(region=REGIONS)
    def gateways_die(self, region):
        """Their holds are charged by the next one."""
        region = self.regions[region]
        region.store.close()
        region.store = self.started(region.name, RegionalBook)
        region.store.transact(lambda _: None)
        self.follow(region)
        for id, cost in region.engine.query("SELECT id, cost FROM entries"):
            if id in region.calls:
                region.calls[id] = cost

    @rule(region=REGIONS)
    def given_up(self, region):
        holder = self.regions[region].holder
        self.authority.transact(lambda book: book.write_off([holder.id]))

    @rule(region=REGIONS)
    def tables_are_made_anew(self, region):
        region = self.regions[region]
        rows = dict(region.engine.query("SELECT id, cost FROM entries"))
        holds = dict(region.engine.query("SELECT id, amount FROM holds"))
        self.lost |= {
            id: min(cost, held)
            for id, cost, held in region.engine.query("SELECT id, cost, held FROM entries")
        }
        assert set(region.calls) == {*rows, *holds}
        self.lost |= holds
        region.store.close()
        empty(region.engine)
        old = region.holder
        self.make(region.name)
        self.late_funds(region.other, old)
        self.ship(self.regions[region.name], rows=0)
        self.deliver(self.regions[region.name], self.regions[region.name].under_way[-1])

    def late_funds(self, store, old):
        """A gateway that has not heard of it yet can take nothing over into the new tables."""

        def fund(book):
            book.check(old)
            raise AssertionError("these are not its tables")

        with pytest.raises(TablesReplaced):
            store.transact(fund)

    @rule(region=REGIONS, name=ACCOUNTS, amount=AMOUNTS)
    def replaced_holder_asks(self, region, name, amount):
        """It is given nothing, whatever it was given before."""
        rows = self.engines["authority"].query(
            f"SELECT id FROM holders WHERE region = '{region}' AND replaced"
        )
        for (id,) in rows:
            with pytest.raises(TablesReplaced):
                self.authority.transact(
                    lambda book, id=id: book.grant(Holder(id, region), name, amount, amount),
                    [Subject(holder=id)],
                )
            held = self.engines["authority"].query(f"SELECT lost FROM holders WHERE id = '{id}'")
            assert held == [(True,)]

    # What holds

    @invariant()
    def no_region_has_more_than_is_held_for_it(self):
        for region in getattr(self, "regions", {}).values():
            known = {(row[0], row[1]): row[2:] for row in self.slices(region)}
            for name, period, granted, returned, spent, held in region.engine.query(
                "SELECT account, period, granted, returned, spent, held FROM account_periods"
            ):
                given, shipped, back, _ = known.get((name, period), (0, 0, 0, 0))
                assert spent + held <= granted - returned
                assert granted <= given
                # What is held or charged for it covers all that it spent and may spend.
                assert given - shipped - back >= granted - returned - shipped


def empty(engine):
    """Begin anew, as with tables that were just made."""
    for table in (
        *("owners", "accounts", "account_periods", "holds", "entries", "actions", "idempotency"),
        *("cursors", "envelopes", "transfers", "holders", "slices"),
    ):
        engine.query(f"DELETE FROM {table}")
    engine.query(
        "UPDATE ledger SET name = NULL, epoch = 0, version = 0, rare_version = 0, last_seq = 0,"
        " envelopes_version = 0, generation = 0, period = NULL, time_zone = NULL,"
        " next_time_zone = NULL, incarnation = gen_random_uuid()::text"
    )


@pytest.fixture
def hasty() -> Iterator[PostgresServer]:
    """A server that flushes nothing to its disk: no power is lost here."""
    server = PostgresServer(("fsync=off", "full_page_writes=off"))
    server.start()
    yield server
    server.stop()


def test_authority_and_regions_agree_whatever_is_lost(tmp_path, hasty) -> None:
    clock = Clock()
    engines = {}
    for name in ("authority", *NAMES):
        (tmp_path / name).mkdir()
        engines[name] = PostgresEngine(tmp_path / name, clock, hasty)
        migrate(Database(engines[name].file))
    machine = type("Machine", (RegionsMachine,), {"clock": clock, "engines": engines})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
