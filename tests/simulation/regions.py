"""Regions with databases of their own, in one process, on one clock, from one seed.

Real are the books of both sides and all that a region's gateways do with them (`ledger.regions`).
Simulated are the network, the databases' failures, the death of gateways, time, and calls that keep
a bill of their own. Afterwards that bill is compared with the authority's ledger, row by row.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from tests.simulation.clockwork import Clockwork, Process
from tests.simulation.database import Broken
from tests.simulation.shared import (
    REGION_SECONDS,
    SharedDatabase,
    SimulatedAuthority,
    SimulatedRegion,
)
from tests.simulation.tables import Tables
from tests.simulation.world import Gone, Report

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.ledger.interface import (
    AwaitingApproval,
    BudgetExceeded,
    Entry,
    HoldRequest,
    LedgerError,
    LedgerUnavailable,
    Outcome,
    Settlement,
    UnknownAccount,
    UnknownHold,
)
from llmbudget.ledger.records import OpenHold, Slice
from llmbudget.ledger.regions.authority import AuthorityBook
from llmbudget.ledger.regions.lease import Lease
from llmbudget.ledger.regions.local import RegionalBook
from llmbudget.ledger.regions.regional import RegionalLedger
from llmbudget.ledger.regions.slices import SLICE

SECONDS: Final = 90.0
"""How long a run lasts before everything is left to settle."""
SETTLING: Final = 3 * REGION_SECONDS
"""Long enough for whoever is silent to be given up, and for what comes late."""
CALLERS: Final = 6
ROOT, TEAM, APP = "llm/org", "llm/team", "llm/app"
NAMES: Final = ("us", "eu", "ap", "sa")
CENTRAL: Final = "central"
"""In place of a region: gateways that ask the authority for each call."""
FAR, NEAR = 0.25, 0.01
"""The longest way to the authority, and to the region's own database, in seconds."""
LARGEST: Final = 1_000


@dataclass(slots=True)
class Call:
    """One call, and what its provider bills."""

    id: str
    account: str
    amount: int
    answer: str = ""
    billed: int | None = None
    """None: it was not sent."""
    period: str = ""

    @property
    def within(self) -> int:
        """What is billed within the hold."""
        return min(self.billed or 0, self.amount)


class Gateway:
    """One gateway process of a region, as far as it counts."""

    def __init__(self, world: RegionsWorld, region: str, number: int) -> None:
        self._world = world
        self.region = region
        self.process = Process(f"{region}-{number}")
        self._serving: dict[asyncio.Future[None], None] = {}
        loop, chance = world.loop, world.chance
        self.authority = SimulatedAuthority(world.authority, self.process, loop, chance, FAR)
        self.links = [self.authority.courier]
        self.ledger: SimulatedAuthority | RegionalLedger = self.authority
        if region != CENTRAL:
            lease = Lease(REGION_SECONDS, loop.time)
            self.ledger = RegionalLedger(self.authority, self._open_region, region, lease)
        self.ready = False
        self.closed = False
        self._config = world.config
        self._configuring = asyncio.Lock()
        self.configure(world.config)

    def _open_region(self) -> SimulatedRegion:
        world = self._world
        database = world.databases[self.region]
        made = SimulatedRegion(database, self.process, world.loop, world.chance, NEAR)
        self.links.append(made.courier)
        return made

    def configure(self, config: tuple[int, tuple[AccountConfig, ...]]) -> None:
        """Take over a configuration, as from the ConfigMap."""
        self._config = config
        self._world.loop.start(self.process, self._configure())

    async def _configure(self) -> None:
        async with self._configuring:
            while not self.closed:
                generation, accounts = self._config
                try:
                    await self.ledger.configure(accounts, time_zone="UTC", generation=generation)
                except LedgerError:
                    await asyncio.sleep(1.0)
                else:
                    self.ready = True
                    return

    async def serve(self, call: Call) -> None:
        """Let a call be counted and sent, or break off when the gateway dies."""
        await self._do(self._serve(call))

    async def close(self) -> None:
        """End in order."""
        self.closed = True
        await self._do(self.ledger.close())
        self.kill()

    async def _do(self, work: Awaitable[None]) -> None:
        reply: asyncio.Future[None] = self._world.loop.create_future()
        self._serving[reply] = None

        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._world.faults.append(error)
            if not reply.done():
                reply.set_result(None)

        self._world.loop.start(self.process, run())
        try:
            await reply
        finally:
            self._serving.pop(reply, None)

    async def _serve(self, call: Call) -> None:
        chance, ledger = self._world.chance, self.ledger
        try:
            hold = await ledger.hold(
                HoldRequest(call.id, call.account, Nano(call.amount), "north", "large")
            )
        except (BudgetExceeded, AwaitingApproval, UnknownAccount, LedgerUnavailable) as refusal:
            call.answer = type(refusal).__name__
            return
        call.answer, call.period = "sent", hold.period
        if chance.random() < 0.1:
            await self._until_done(lambda: ledger.release(call.id))
            return
        dear = chance.random() < 0.03
        call.billed = chance.randint(0, call.amount + (call.amount // 2 if dear else 0))
        await asyncio.sleep(chance.choice((0.05, 0.5, 3.0, 20.0)))
        known = chance.random() < 0.9
        settlement = Settlement(Nano(call.billed) if known else None)
        await self._until_done(lambda: ledger.settle(call.id, settlement))

    async def _until_done(self, resolve: Callable[[], Awaitable[Entry]]) -> None:
        while not self.closed:
            try:
                await resolve()
            except UnknownHold:
                return  # It went with its database.
            except LedgerUnavailable:
                await asyncio.sleep(1.0)
            else:
                return

    def kill(self) -> None:
        """End it between two instructions."""
        self.process.alive = False
        for reply in list(self._serving):
            if not reply.done():
                reply.set_exception(Gone())


class RegionsWorld:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.loop = Clockwork()
        self.faults: list[Exception] = []
        self.trace: list[str] = []
        self.events: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.calls: dict[str, Call] = {}
        self.caps: dict[str, list[int]] = {}
        self.hanging = 0
        self.authority = SharedDatabase("authority", AuthorityBook, self.loop, self.chance)
        self.regions = NAMES[: self.chance.randint(2, 4)]
        self.databases = {
            name: SharedDatabase(name, RegionalBook, self.loop, self.chance)
            for name in self.regions
        }
        self.config = self._next_configuration(1)
        self._born: list[Gateway] = []
        """All that there ever were: a task that is forgotten would run on to its end."""
        self._gateways: dict[str, list[Gateway]] = {}
        self._backups: dict[str, Tables] = {}
        self._forgotten: set[str] = set()
        """Calls that a database which was restored knows nothing of."""
        self._restored: dict[str, float] = {}
        """When tables came from a backup first."""

    def run(self) -> Report:
        """Let it happen.

        Raises:
            Broken: a promise does not hold.
        """
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._story())
            return self._report()
        finally:
            self.loop.bury()
            asyncio.set_event_loop(None)
            self.loop.close()

    # What happens

    async def _story(self) -> None:
        places = [*self.regions] + [CENTRAL] * (self.chance.random() < 0.5)
        for place in places:
            self._gateways[place] = [self._new_gateway(place) for _ in range(2)]
        await asyncio.sleep(3.0)
        everything = asyncio.gather(self._trouble(), *(self._caller(at) for at in range(CALLERS)))
        await self._unbroken(everything)
        await self._unbroken(asyncio.ensure_future(self._mend()))

    async def _unbroken(self, work: asyncio.Future[object]) -> None:
        broken = [database.broken for database in self._all_databases()]
        done, _ = await asyncio.wait({work, *broken}, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()

    def _all_databases(self) -> Iterable[SharedDatabase]:
        return (self.authority, *self.databases.values())

    async def _mend(self) -> None:
        """Let all come back, try whether they serve, and end everything in order."""
        for database in self._all_databases():
            database.down = False
        for gateway in self._alive():
            for link in gateway.links:
                link.cut = False
        await asyncio.sleep(SETTLING)
        self._check_held()
        for database in self.databases.values():
            if self._is_given_nothing(database):
                self.note("a database that went back is made anew")
                database.drop()
        await self._check_service()
        await asyncio.gather(*(gateway.close() for gateway in self._alive()))

    def _alive(self) -> list[Gateway]:
        return [each for group in self._gateways.values() for each in group if each.process.alive]

    def _is_given_nothing(self, database: SharedDatabase) -> bool:
        holder = self.authority.tables.holder_rows.get(database.tables.header.incarnation)
        return holder is not None and (holder.went_back or holder.replaced)

    def _new_gateway(self, region: str) -> Gateway:
        self._born.append(Gateway(self, region, len(self._born) + 1))
        return self._born[-1]

    def _next_configuration(self, generation: int) -> tuple[int, tuple[AccountConfig, ...]]:
        caps = {
            ROOT: self.chance.randint(5, 80) * LARGEST,
            TEAM: self.chance.choice((None, self.chance.randint(5, 60) * LARGEST)),
            APP: self.chance.randint(2, 40) * LARGEST,
        }
        accounts = [AccountConfig(name=ROOT, cap_nano=caps[ROOT], providers=())]
        accounts.append(AccountConfig(name=TEAM, cap_nano=caps[TEAM], parent=ROOT, providers=()))
        # It moves in the tree, and is not there at times.
        if generation == 1 or self.chance.random() < 0.8:
            parent = self.chance.choice((TEAM, ROOT))
            accounts.append(
                AccountConfig(name=APP, cap_nano=caps[APP], parent=parent, providers=())
            )
        for name, cap in caps.items():
            self.caps.setdefault(name, []).append(2**62 if cap is None else cap)
        return generation, tuple(accounts)

    async def _trouble(self) -> None:
        while self.loop.now < SECONDS:
            await asyncio.sleep(self.chance.expovariate(1 / 3.0))
            name, what = self.chance.choice(self._troubles())
            self.note(name)
            await what()

    def _troubles(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        return [
            ("a gateway is killed", self._kill),
            ("a gateway is killed", self._kill),
            ("a gateway ends", self._end),
            ("a gateway is cut off", self._cut_gateway),
            ("a region is cut off", self._cut_region),
            ("the authority is away", self._authority_outage),
            ("a region's database is away", self._region_outage),
            ("a region's database is lost", self._lose),
            ("a region's database is backed up", self._back_up),
            ("a region's database is backed up", self._back_up),
            ("a region's database is restored", self._restore),
            ("a region ends", self._end_region),
            ("the clock moves", self._shift),
            ("the caps change", self._reconfigure),
        ]

    def _some_gateway(self) -> tuple[list[Gateway], int]:
        group = self._gateways[self.chance.choice(sorted(self._gateways))]
        return group, self.chance.randrange(len(group))

    def _some_region(self) -> str:
        return self.chance.choice(self.regions)

    async def _kill(self) -> None:
        group, at = self._some_gateway()
        group[at].kill()
        await asyncio.sleep(self.chance.uniform(0.1, 6.0))
        group[at] = self._new_gateway(group[at].region)

    async def _end(self) -> None:
        group, at = self._some_gateway()
        await self._ended(group[at])
        group[at] = self._new_gateway(group[at].region)

    async def _end_region(self) -> None:
        group = self._gateways[self._some_region()]
        await asyncio.gather(*map(self._ended, group))
        await asyncio.sleep(self.chance.choice((0.0, 5.0, 30.0)))
        group[:] = [self._new_gateway(each.region) for each in group]

    async def _ended(self, gateway: Gateway) -> None:
        if gateway.process.alive:
            await gateway.close()

    async def _cut_gateway(self) -> None:
        group, at = self._some_gateway()
        link = self.chance.choice(group[at].links)
        link.cut = True
        self.loop.call_later(self.chance.choice((1.0, 8.0, 30.0)), setattr, link, "cut", False)

    async def _cut_region(self) -> None:
        seconds = self.chance.choice((1.0, 8.0, 30.0, 2 * REGION_SECONDS))
        for gateway in self._gateways[self._some_region()]:
            gateway.authority.courier.cut = True
            self.loop.call_later(seconds, setattr, gateway.authority.courier, "cut", False)

    async def _authority_outage(self) -> None:
        await self._outage(self.authority)

    async def _region_outage(self) -> None:
        await self._outage(self.databases[self._some_region()])

    async def _outage(self, database: SharedDatabase) -> None:
        database.down = True
        await asyncio.sleep(self.chance.choice((0.5, 3.0, 12.0)))
        database.down = False

    async def _lose(self) -> None:
        self.databases[self._some_region()].drop()

    async def _back_up(self) -> None:
        region = self._some_region()
        self._backups[region] = self.databases[region].tables.backup()

    async def _restore(self) -> None:
        region = self._some_region()
        backup = self._backups.get(region)
        if backup is None:
            return
        database, incarnation = self.databases[region], backup.header.incarnation
        opened = {id for id, place in database.opened.items() if place[0] == incarnation}
        self._forgotten |= opened - backup.holds.keys() - backup.entry_rows.keys()
        self._restored.setdefault(incarnation, self.loop.now)
        database.tables = backup.backup()

    async def _shift(self) -> None:
        database = self.chance.choice((self.authority, *self._all_databases()))
        database.shift += self.chance.choice(
            (timedelta(days=30), timedelta(hours=-2), timedelta(hours=13))
        )

    async def _reconfigure(self) -> None:
        self.config = self._next_configuration(self.config[0] + 1)
        for gateway in self._alive():
            # Not all hear of it: a stale one must not bring the old caps back.
            if self.chance.random() < 0.7:
                gateway.configure(self.config)

    async def _caller(self, number: int) -> None:
        turn = 0
        while self.loop.now < SECONDS:
            await asyncio.sleep(self.chance.expovariate(1.5))
            turn += 1
            group, at = self._some_gateway()
            await self._call(group[at], f"call-{number}-{turn}")

    async def _call(self, gateway: Gateway, name: str) -> Call:
        account = self.chance.choice((ROOT, TEAM, APP, APP))
        call = Call(name, account, self.chance.randint(1, LARGEST))
        if gateway.process.alive and gateway.ready and not gateway.closed:
            self.calls[name] = call
            self.hanging += 1
            try:
                await gateway.serve(call)
            except Gone:
                self.note("a call broke off")
            else:
                self.answers[call.answer] += 1
                self.note(f"{name} in {gateway.region}: {call.answer} {call.billed}")
            self.hanging -= 1
        if self.faults:
            raise Broken(f"a gateway failed: {self.faults[0]!r}") from self.faults[0]
        return call

    def note(self, what: str) -> None:
        """Take down what happened."""
        self.events["calls" if ": " in what else what] += 1
        self.trace.append(f"{self.loop.now:9.4f} {what}")

    # What must hold

    def _check_held(self) -> None:
        """What came late is resolved and told, and each hold of the authority has its reason."""
        for database in self._all_databases():
            # What comes back with a backup is held until the gateway ends that had resolved it.
            if database.tables.header.incarnation not in self._restored:
                self._check_no_holds(database)
        for database in self.databases.values():
            holder = self.authority.tables.holder_rows.get(database.tables.header.incarnation)
            told = holder is not None and holder.shipped_seq == database.tables.last
            if not told and not self._is_given_nothing(database):
                raise Broken(f"{database.name} has not told all: {holder}, {database.tables.last}")
        self._check_sums()
        self._check_missing(ended=False)

    def _check_no_holds(self, database: SharedDatabase) -> None:
        if database.tables.holds and not self._is_given_nothing(database):
            raise Broken(f"{database.name}: holds are left: {sorted(database.tables.holds)}")

    async def _check_service(self) -> None:
        """When all is mended, every gateway serves."""
        accounts = (
            AccountConfig(name=ROOT, cap_nano=10**9, providers=()),
            *(AccountConfig(name=name, parent=ROOT, providers=()) for name in (TEAM, APP)),
        )
        self.config = self.config[0] + 1, accounts
        for name in (ROOT, TEAM, APP):
            self.caps[name].append(10**9)
        for gateway in self._alive():
            gateway.configure(self.config)
        await asyncio.sleep(15.0)
        for number, gateway in enumerate(self._alive()):
            call = await self._call(gateway, f"last-{number}")
            if call.answer != "sent":
                problem = gateway.ledger.problem
                raise Broken(f"{gateway.process.name} serves nothing: {call.answer}, {problem}")

    def _report(self) -> Report:
        if self.hanging:
            raise Broken(f"{self.hanging} callers have no answer")
        for database in self._all_databases():
            self._check_no_holds(database)
        self._check_sums()
        self._check_rows()
        self._check_missing(ended=True)
        self._check_caps()
        rows = self.authority.tables.entry_rows.values()
        billed = sum(call.billed or 0 for call in self.calls.values())
        return Report(
            Counter(self.answers),
            self.events,
            billed,
            sum(row.entry.cost for row in rows),
            tuple(self.trace),
        )

    def _check_sums(self) -> None:
        """Every account of the authority is the sum of its rows, and holds what calls and slices
        hold."""
        tables = self.authority.tables
        spent: Counter[tuple[str, str]] = Counter()
        held: Counter[tuple[str, str]] = Counter()
        for row in tables.entry_rows.values():
            spent.update({(name, row.entry.period): row.entry.cost for name in row.path})
        holding: list[tuple[OpenHold | Slice, int]] = [(h, h.amount) for h in tables.holds.values()]
        holding += [(each, each.outstanding) for each in tables.slice_rows.values()]
        for found, amount in holding:
            if amount < 0:
                raise Broken(f"more came back than was given: {found}")
            held.update({(name, found.period): amount for name in found.path})
        for key, figures in tables.sums.items():
            if (figures.spent + figures.overage, figures.held) != (spent[key], held[key]):
                raise Broken(f"{key}: {figures}, rows {spent[key]}, held {held[key]}")

    def _check_rows(self) -> None:
        """I2: what a provider bills has one row, and what no provider bills costs nothing, or is
        unknown."""
        rows = self.authority.tables.entry_rows
        for row in rows.values():
            entry = row.entry
            if entry.provider == SLICE:
                continue
            call = self.calls[entry.id]
            if entry.outcome is Outcome.RELEASED and call.billed is not None:
                raise Broken(f"I2: {entry.id} was billed {call.billed} and released")
            if entry.outcome is Outcome.METERED and entry.cost != call.billed:
                raise Broken(f"{entry.id} was billed {call.billed} and charged {entry.cost}")
            if entry.cost < call.within:
                raise Broken(f"{entry.id} was billed {call.billed} and charged {entry.cost}")

    def _check_missing(self, *, ended: bool) -> None:
        """No money is lost: what has no row was in a database that is gone, and is charged as
        unknown, all of it. What the last gateways of a region could not tell any more is held until
        it is."""
        tables = self.authority.tables
        missing: Counter[tuple[str, str, str]] = Counter()
        for call in self._unbooked():
            incarnation = self._place(call)[0]
            holder = tables.holder_rows.get(incarnation)
            if holder is None or not (holder.lost or ended or self._is_open(call)):
                raise Broken(f"I2: {call.id} was billed {call.billed} and has no row, {holder}")
            missing[incarnation, call.account, call.period] += call.within
        for key, billed in missing.items():
            found = tables.slice_rows.get(key)
            if found is None or billed > found.unknown + found.outstanding:
                raise Broken(f"{billed} was billed in {key}, and is not charged: {found}")

    def _is_open(self, call: Call) -> bool:
        return any(call.id in database.tables.holds for database in self._all_databases())

    def _unbooked(self) -> Iterable[Call]:
        """List what was billed and has no row, but for what no ledger can know: what a database
        that was restored has forgotten, and spent until that was found."""
        rows, holders = self.authority.tables.entry_rows, self.authority.tables.holder_rows
        for call in self.calls.values():
            if call.billed is None or call.id in rows or call.id in self._forgotten:
                continue
            incarnation, opened = self._place(call)
            holder = holders.get(incarnation)
            since = self._restored.get(incarnation, opened)
            if holder is None or not holder.went_back or opened <= since:
                yield call

    def _place(self, call: Call) -> tuple[str, float]:
        return next(
            each.opened[call.id] for each in self._all_databases() if call.id in each.opened
        )

    def _check_caps(self) -> None:
        """I1 by the bill: no month of any account has more than its highest cap."""
        rows = self.authority.tables.entry_rows
        billed: Counter[tuple[str, str]] = Counter()
        known = [call for call in self.calls.values() if call.id in rows]
        for call in (*known, *self._unbooked()):
            billed[ROOT, call.period] += call.within
            if call.account != ROOT:
                billed[call.account, call.period] += call.within
        for (name, period), total in billed.items():
            if total > max(self.caps[name]):
                raise Broken(f"I1: {name} was billed {total} in {period}, caps {self.caps[name]}")
