"""Regions with databases of their own, in one process, on one clock, from one seed.

Real are the books of both sides and all that a region's gateways do with them (`ledger.regions`).
Simulated are the network, the databases' failures, the death of gateways, time, and calls that keep
a bill of their own. Afterwards that bill is compared with the authority's ledger, row by row.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Final, TypeVar

from tests.simulation.books import Books
from tests.simulation.database import Broken
from tests.simulation.regional import CENTRAL, Call, Gateway
from tests.simulation.shared import REGION_SECONDS, SharedDatabase
from tests.simulation.story import Gone, Report, Story, Trouble
from tests.simulation.tables import Tables

from llmbudget.contract.config import AccountConfig, BorrowingConfig
from llmbudget.ledger.records import TransferKind
from llmbudget.ledger.regions.authority import AuthorityBook
from llmbudget.ledger.regions.local import RegionalBook

SETTLING: Final = 3 * REGION_SECONDS
"""Long enough for whoever is silent to be given up, and for what comes late."""
Answer = TypeVar("Answer")

CALLERS: Final = 6
TASKS: Final = 2
"""Callers that set money aside first."""
ROOT, TEAM, APP, LAB = "llm/org", "llm/team", "llm/app", "llm/lab"
ACCOUNTS: Final = (ROOT, TEAM, APP, APP, LAB)
NAMES: Final = ("us", "eu", "ap", "sa")
LARGEST: Final = 1_000


class RegionsWorld(Story):
    """One run."""

    seconds = 90.0
    calm = 3.0

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.answers: Counter[str] = Counter()
        self.authority = SharedDatabase("authority", AuthorityBook, self.loop, self.chance)
        self.regions = NAMES[: self.chance.randint(2, 4)]
        self.databases = {
            name: SharedDatabase(name, RegionalBook, self.loop, self.chance)
            for name in self.regions
        }
        self._books = Books(ROOT, self.authority, (self.authority, *self.databases.values()))
        self.config = self._next_configuration(1)
        self._born: list[Gateway] = []
        """All that there ever were: a task that is forgotten would run on to its end."""
        self._gateways: dict[str, list[Gateway]] = {}
        self._backups: dict[str, Tables] = {}

    # What happens

    async def _story(self) -> None:
        places = [*self.regions] + [CENTRAL] * (self.chance.random() < 0.5)
        for place in places:
            self._gateways[place] = [self._new_gateway(place) for _ in range(2)]
        await asyncio.sleep(3.0)
        everything = asyncio.gather(
            self._trouble(),
            *(self._caller(at) for at in range(CALLERS)),
            *(self._tasks(at) for at in range(TASKS)),
        )
        await self._unbroken(everything)
        await self._unbroken(asyncio.ensure_future(self._mend()))

    def _broken(self) -> Iterable[asyncio.Future[None]]:
        return [database.broken for database in self._books.databases]

    async def _mend(self) -> None:
        """Let all come back, try whether they serve, and end everything in order."""
        for database in self._books.databases:
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
        cap = {
            ROOT: self._money(5, 80),
            TEAM: self.chance.choice((None, self._money(5, 60))),
            APP: self._money(1, 20),
            LAB: self._money(2, 40),
        }
        rollover = {name: self.chance.choice((0, self._money(1, 20))) for name in cap}
        accounts = [
            AccountConfig(
                name=name,
                parent=parent,
                cap_nano=cap[name],
                rollover_nano=rollover[name],
                borrowing=self._borrowing() if name in (APP, LAB) else None,
                providers=(),
            )
            for name, parent in (
                (ROOT, None),
                (TEAM, ROOT),
                # They move in the tree, and are not there at times.
                (APP, self.chance.choice((TEAM, TEAM, ROOT))),
                (LAB, self.chance.choice((TEAM, TEAM, ROOT))),
            )
            if generation == 1 or name in (ROOT, TEAM) or self.chance.random() < 0.8
        ]
        self._books.configured(accounts)
        return generation, tuple(accounts)

    def _money(self, least: int, most: int) -> int:
        return self.chance.randint(least, most) * LARGEST

    def _borrowing(self) -> BorrowingConfig | None:
        if self.chance.random() < 0.1:
            return None
        return BorrowingConfig(
            limit_nano=self.chance.choice((0, self._money(1, 20))),
            lending_limit_nano=self.chance.choice((None, self._money(1, 20))),
        )

    def _troubles(self) -> list[Trouble]:
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
            ("the month ends", self._end_month),
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
        self._books.forgotten |= opened - backup.holds.keys() - backup.entry_rows.keys()
        self._books.restored.setdefault(incarnation, self.loop.now)
        database.tables = backup.backup()

    async def _shift(self) -> None:
        database = self.chance.choice((self.authority, *self._books.databases))
        database.shift += self.chance.choice(
            (timedelta(days=30), timedelta(hours=-2), timedelta(hours=13))
        )

    async def _end_month(self) -> None:
        self.authority.shift += timedelta(days=30)

    async def _reconfigure(self) -> None:
        self.config = self._next_configuration(self.config[0] + 1)
        for gateway in self._alive():
            # Not all hear of it: a stale one must not bring the old caps back.
            if self.chance.random() < 0.7:
                gateway.configure(self.config)

    async def _caller(self, number: int) -> None:
        turn = 0
        while self.loop.now < self.seconds:
            await asyncio.sleep(self.chance.expovariate(1.5))
            turn += 1
            group, at = self._some_gateway()
            await self._call(group[at], f"call-{number}-{turn}")

    async def _tasks(self, number: int) -> None:
        turn = 0
        while self.loop.now < self.seconds:
            await asyncio.sleep(self.chance.expovariate(1 / 3))
            turn += 1
            await self._task(f"task-{number}-{turn}")

    async def _task(self, name: str) -> None:
        """Set money aside, spend it anywhere, and give back what is left, or leave it to expire."""
        account, amount = self.chance.choice(ACCOUNTS), self.chance.randint(1, 3 * LARGEST)
        seconds = self.chance.choice((2.0, 10.0, 3600.0))
        if not await self._asked(lambda at: at.open(name, account, amount, seconds)):
            return
        self.note("an envelope is opened")
        for each in range(self.chance.randint(1, 6)):
            group, at = self._some_gateway()
            await self._call(group[at], f"{name}-{each}", account, envelope=name)
        if self.chance.random() < 0.7:
            await self._asked(lambda at: at.end(name))

    async def _asked(self, ask: Callable[[Gateway], Awaitable[Answer]]) -> Answer | None:
        """Ask some gateway; None: it is not there, or died."""
        group, at = self._some_gateway()
        if not group[at].serves:
            return None
        try:
            return await ask(group[at])
        except Gone:
            return None

    async def _call(
        self,
        gateway: Gateway,
        name: str,
        account: str | None = None,
        envelope: str | None = None,
    ) -> Call:
        account = account or self.chance.choice(ACCOUNTS)
        call = Call(name, account, self.chance.randint(1, LARGEST), envelope)
        if gateway.serves:
            self._books.calls[name] = call
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

    # What must hold

    def _check_held(self) -> None:
        """What came late is resolved and told, and each hold of the authority has its reason."""
        for database in self._books.databases:
            # What comes back with a backup is held until the gateway ends that had resolved it.
            if database.tables.header.incarnation not in self._books.restored:
                self._check_no_holds(database)
        for database in self.databases.values():
            holder = self.authority.tables.holder_rows.get(database.tables.header.incarnation)
            told = holder is not None and holder.shipped_seq == database.tables.last
            if not told and not self._is_given_nothing(database):
                raise Broken(f"{database.name} has not told all: {holder}, {database.tables.last}")
        self._books.check_sums()
        self._books.check_missing(ended=False)

    def _check_no_holds(self, database: SharedDatabase) -> None:
        if database.tables.holds and not self._is_given_nothing(database):
            raise Broken(f"{database.name}: holds are left: {sorted(database.tables.holds)}")

    async def _check_service(self) -> None:
        """When all is mended, every gateway serves."""
        accounts = (
            AccountConfig(name=ROOT, cap_nano=10**9, providers=()),
            *(AccountConfig(name=name, parent=ROOT, providers=()) for name in (TEAM, APP, LAB)),
        )
        self.config = self.config[0] + 1, accounts
        self._books.configured(accounts)
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
        for database in self._books.databases:
            self._check_no_holds(database)
        self._books.check()
        transfers = self.authority.tables.transfers.values()
        carried = [each for each in transfers if each.kind is TransferKind.ROLLOVER]
        self.events["unused money is carried on"] = len(carried)
        self.events["money of siblings is granted"] = self.authority.loans
        rows = self.authority.tables.entry_rows.values()
        billed = sum(call.billed or 0 for call in self._books.calls.values())
        return Report(
            Counter(self.answers),
            self.events,
            billed,
            sum(row.entry.cost for row in rows),
            tuple(self.trace),
        )
