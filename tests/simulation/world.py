"""Gateways, callers, providers and a database in one process, on one clock, from one seed.

Real are the life of a call (`Calls`, `Admission`, `Attempt`, the relay of streams), the book of the
ledger and its rows. Simulated are the network, the providers, the database's failures, the death of
gateways and time. Afterwards the providers' bill is compared with the ledger, row by row.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast

from tests.simulation.configuration import PROVIDERS, ROOT, TEAM, configuration
from tests.simulation.database import Broken, Database
from tests.simulation.gateways import Caller, Gateway
from tests.simulation.provider import Bill
from tests.simulation.story import Gone, Report, Story, Trouble

from llmbudget.contract.config import GatewayConfig
from llmbudget.ledger.book import Book
from llmbudget.ledger.interface import Entry, Outcome

CALLERS: Final = 8
SETTLING: Final = 45.0
KEY: Final = "sk-simulated-0123456789"


class World(Story):
    """One run."""

    seconds = 60.0
    calm = 2.5

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed)
        self.keys = folder / "keys"
        self.keys.mkdir(exist_ok=True)
        for provider in PROVIDERS:
            (self.keys / provider.name).write_text(KEY)
        self.database = Database(folder / f"{seed}.db", self.loop)
        self.bill = Bill()
        self.sent_under: dict[str, str] = {}
        self.statuses: Counter[int] = Counter()
        self.caps: dict[str, list[int]] = {ROOT: [], TEAM: []}
        self._config = self._next_configuration(1)
        self._gateways: list[Gateway] = []
        self._born: list[Gateway] = []
        """All that there ever were: a task that is forgotten would run on to its end."""

    def run(self) -> Report:
        """See `Story.run`."""
        try:
            return super().run()
        finally:
            self.database.restart()

    def _broken(self) -> list[asyncio.Future[None]]:
        return [self.database.broken]

    # What happens

    async def _story(self) -> None:
        self._gateways = [self._new_gateway() for _ in range(3)]
        await asyncio.sleep(1.0)
        await self._unbroken(
            asyncio.gather(self._trouble(), *(self._caller(at) for at in range(CALLERS)))
        )
        self.database.down = False
        for gateway in self._gateways:
            gateway.ledger.courier.cut = False
        await asyncio.sleep(SETTLING)

    def _new_gateway(self) -> Gateway:
        self._born.append(Gateway(self, f"gateway-{len(self._born) + 1}", self._config))
        return self._born[-1]

    def _next_configuration(self, generation: int) -> GatewayConfig:
        caps = [self.chance.randint(20, 200) * 1_000_000 for _ in range(2)]
        for name, cap in zip((ROOT, TEAM), caps, strict=True):
            self.caps[name].append(cap)
        return configuration(generation, *caps)

    def _troubles(self) -> list[Trouble]:
        return [
            ("a gateway is killed", self._kill),
            ("a gateway is killed", self._kill),
            ("a gateway is cut off", self._cut),
            ("the database is away", self._outage),
            ("the clock moves", self._shift),
            ("the caps change", self._reconfigure),
        ]

    async def _kill(self) -> None:
        at = self.chance.randrange(len(self._gateways))
        self._gateways[at].kill()
        await asyncio.sleep(self.chance.uniform(0.1, 3.0))
        self._gateways[at] = self._new_gateway()

    async def _cut(self) -> None:
        gateway = self.chance.choice(self._gateways)
        gateway.ledger.courier.cut = True
        await asyncio.sleep(self.chance.choice((1.0, 8.0, 30.0)))
        gateway.ledger.courier.cut = False

    async def _outage(self) -> None:
        self.database.down = True
        self.database.restart()
        await asyncio.sleep(self.chance.choice((0.5, 3.0, 9.0)))
        self.database.down = False

    async def _shift(self) -> None:
        self.database.shift += self.chance.choice(
            (timedelta(days=30), timedelta(hours=-2), timedelta(hours=13))
        )

    async def _reconfigure(self) -> None:
        self._config = self._next_configuration(self._config.generation + 1)
        for gateway in self._gateways:
            # Not all hear of it: a stale one must not bring the old caps back.
            if gateway.process.alive and self.chance.random() < 0.7:
                gateway.configure(self._config)

    async def _caller(self, number: int) -> None:
        turn = 0
        repeated: Caller | None = None
        while self.loop.now < self.seconds:
            await asyncio.sleep(self.chance.expovariate(1.0))
            turn += 1
            caller = repeated or self._request(f"call-{number}-{turn}")
            repeated = None
            gateway = self.chance.choice(self._gateways)
            if not (gateway.process.alive and gateway.ready):
                continue
            self.hanging += 1
            try:
                await gateway.serve(caller)
            except Gone:
                self.note("a call broke off")
                if "idempotency-key" in caller.headers:
                    repeated = Caller(caller.body_bytes, caller.headers, None)
            else:
                self.statuses[caller.status] += 1
                self.note(f"{caller.headers['x-llmbudget-task-id']}: {caller.status}")
                self._check_answer(caller)
            self.hanging -= 1

    def _request(self, name: str) -> Caller:
        text = f"{name} " + "x" * self.chance.randint(0, 400)
        asked: dict[str, object] = {
            "model": self.chance.choice(("large", "large", "small", "auto")),
            "messages": [{"role": "user", "content": text}],
        }
        if self.chance.random() < 0.7:
            asked["max_tokens"] = self.chance.randint(1, 400)
        leaves = None
        if self.chance.random() < 0.4:
            asked["stream"] = True
            leaves = self.chance.randrange(8) if self.chance.random() < 0.3 else None
        headers = {"x-llmbudget-task-id": name}
        if self.chance.random() < 0.5:
            headers["idempotency-key"] = f"key-{name}"
        return Caller(json.dumps(asked).encode(), headers, leaves)

    # What must hold

    def _check_answer(self, caller: Caller) -> None:
        if self.faults:
            raise Broken(f"the gateway failed: {self.faults[0]!r}") from self.faults[0]
        if caller.status not in (200, 400, 402, 409, 429, 502, 503):
            raise Broken(f"status {caller.status}: {caller.got!r}")

    def _report(self) -> Report:
        if self.hanging:
            raise Broken(f"{self.hanging} callers have no answer")
        entries = self._settled()
        self._check_rows(entries)
        self._check_repetitions(entries)
        charged = self._check_sums(entries)
        for entry in entries:
            self.note(f"{entry.task_id}: {entry.outcome} {entry.cost}")
        return Report(
            Counter({str(status): n for status, n in self.statuses.items()}),
            self.events,
            sum(self.bill.costs.values()),
            charged,
            tuple(self.trace),
        )

    def _settled(self) -> list[Entry]:
        def look(book: Book) -> list[Entry]:
            if book.holds:
                raise Broken(f"holds are left: {sorted(book.holds)}")
            return list(self._rows(book))

        return self.database.read(look)

    @staticmethod
    def _rows(book: Book) -> Iterator[Entry]:
        rows = cast(Any, book._shelf)
        yield from rows.entries(0, 1_000_000)

    def _check_rows(self, entries: list[Entry]) -> None:
        """I2: one row for whatever a provider took, and nothing that it bills is missing."""
        by_id = {entry.id: entry for entry in entries}
        if len(by_id) != len(entries):
            raise Broken("I2: an id has two rows")
        for hold, billed in self.bill.costs.items():
            entry = by_id.get(hold)
            if entry is None:
                raise Broken(f"I2: {hold} was billed {billed} and has no row")
            if entry.outcome is Outcome.RELEASED:
                raise Broken(f"I2: {hold} was billed {billed} and released")
            if entry.outcome is Outcome.METERED and entry.cost != billed:
                raise Broken(f"{hold} was billed {billed} and charged {entry.cost}")
            if billed > entry.cost:
                raise Broken(f"{hold} was billed {billed}, held {entry.held}")
        for entry in entries:
            if entry.outcome is Outcome.METERED and entry.id not in self.bill.costs:
                raise Broken(f"{entry.id} was charged {entry.cost} and never billed")

    def _check_repetitions(self, entries: list[Entry]) -> None:
        """A provider sees a call once for each row of it that may have reached it."""
        rows = Counter(entry.task_id for entry in entries)
        for call, received in self.bill.received.items():
            if received > rows[call]:
                raise Broken(f"I2: {call} was sent {received} times, {rows[call]} rows")

    def _check_sums(self, entries: list[Entry]) -> int:
        """I1 by the bill: no month of any account has more than its highest cap."""
        spent: Counter[str] = Counter()
        billed: Counter[str] = Counter()
        for entry in entries:
            spent[entry.period] += entry.cost
            billed[entry.period] += self.bill.costs.get(entry.id, 0)
        for period, total in billed.items():
            if total > min(max(caps) for caps in self.caps.values()):
                raise Broken(f"I1: {period} was billed {total}, caps {self.caps}")

        def compare(book: Book) -> None:
            for period, total in spent.items():
                for name in (ROOT, TEAM):
                    figures = book._read(name, period)
                    if (figures.spent + figures.overage, figures.held) != (total, 0):
                        raise Broken(f"{name} in {period}: {figures}, rows {total}")

        self.database.read(compare)
        return sum(spent.values())
