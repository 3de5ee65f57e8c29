"""Gateways, callers, providers and a database in one process, on one clock, from one seed.

Real are the life of a call (`Calls`, `Admission`, `Attempt`, the relay of streams), the book of the
ledger and its rows. Simulated are the network, the providers, the database's failures, the death of
gateways and time. Afterwards the providers' bill is compared with the ledger, row by row.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, cast

from tests.simulation.clockwork import Clockwork, Process
from tests.simulation.database import Broken, Database, SimulatedLedger
from tests.simulation.provider import Bill, SimulatedProvider
from tests.support.records import call_story

from llmbudget.api.budget import Action
from llmbudget.api.credentials import KeyHeader
from llmbudget.api.provider import Protocol
from llmbudget.contract.config import (
    AccountConfig,
    ConsumerConfig,
    GatewayConfig,
    ModelConfig,
    Prices,
    ProviderConfig,
    Threshold,
)
from llmbudget.decide.catalogue import catalogues
from llmbudget.decide.consumers import Consumers
from llmbudget.gateway.admission import Admission
from llmbudget.gateway.call import Calls
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.protocols.chat import CHAT
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.refusals import refusal_of
from llmbudget.gateway.routes import Routes
from llmbudget.gateway.upstream import Upstream
from llmbudget.gateway.wire import CallerGone, Exchange, Headers, Request
from llmbudget.ledger.book import Book
from llmbudget.ledger.interface import (
    Entry,
    Hold,
    HoldRequest,
    LedgerError,
    Outcome,
)

SECONDS: Final = 60.0
"""How long a run lasts before everything is left to settle."""
CALLERS: Final = 8
SETTLING: Final = 45.0
ROOT, TEAM = "llm/org", "llm/team"
KEY: Final = "sk-simulated-0123456789"


def _model(name: str, price_in: int, price_out: int) -> ModelConfig:
    one, two = Decimal(price_in), Decimal(price_out)
    return ModelConfig(
        name=name,
        upstream_name=name,
        prices=Prices(input=one, output=two, cached_input=one, cache_write=one, reasoning=two),
        max_context=8_000,
        max_output=400,
        default_max_output=100,
        latency_ms=1,
    )


def _provider(name: str, *models: ModelConfig) -> ProviderConfig:
    return ProviderConfig(
        name=name,
        protocol=Protocol.OPENAI,
        endpoint=f"https://{name}.example/v1",
        allow_private=False,
        key_header=KeyHeader.AUTHORIZATION,
        models=models,
        connect_timeout_ms=1,
        idle_timeout_ms=1,
        total_timeout_ms=1,
        bills_errors=False,
    )


LARGE, SMALL = _model("large", 3_000, 15_000), _model("small", 150, 600)
PROVIDERS: Final = (_provider("north", LARGE, SMALL), _provider("south", SMALL))


def configuration(generation: int, root_cap: int, team_cap: int) -> GatewayConfig:
    """Make the gateways' configuration, with caps in nano-USD."""
    names = tuple(provider.name for provider in PROVIDERS)
    root = AccountConfig(name=ROOT, cap_nano=root_cap, providers=names)
    team = AccountConfig(
        name=TEAM,
        parent=ROOT,
        cap_nano=team_cap,
        ladder=("large", "small"),
        thresholds=(
            Threshold(percentage=50, action=Action.NOTIFY_ADMIN),
            Threshold(percentage=80, action=Action.DOWNGRADE_MODELS),
        ),
        providers=names,
        consumers=(ConsumerConfig(namespace="apps"),),
    )
    return GatewayConfig(
        generation=generation,
        root=ROOT,
        operator="llmbudget-system/llmbudget-operator",
        accounts=(root, team),
        providers=PROVIDERS,
        endpoints=(),
    )


class Gone(Exception):
    """The gateway died while it served a call."""


@dataclass(slots=True)
class Caller:
    """One request and what was answered, in place of the server's objects."""

    body_bytes: bytes
    headers: dict[str, str]
    leaves_after: int | None
    """Pieces of a stream after which the caller hangs up."""
    status: int = 0
    answered: dict[str, str] = field(default_factory=dict)
    got: bytes = b""

    async def body(self, most: int) -> bytes:
        return self.body_bytes

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        self.status, self.answered, self.got = status, dict(headers), body

    def response_stream(self, status: int, headers: Headers) -> Caller:
        self.response_bytes(status, headers, b"")
        return self

    async def send_bytes(self, data: bytes) -> None:
        if self.leaves_after is not None:
            self.leaves_after -= 1
            if self.leaves_after < 0:
                raise CallerGone
        self.got += data


class _Watched(SimulatedLedger):
    """Takes down under which hold a call is sent next."""

    sent_under: dict[str, str]

    async def hold(self, request: HoldRequest) -> Hold:
        granted = await super().hold(request)
        self.sent_under[str(request.task_id)] = granted.id
        return granted


class Gateway:
    """One gateway process."""

    def __init__(self, world: World, name: str, config: GatewayConfig) -> None:
        self._world = world
        self.process = Process(name)
        self.ledger = _Watched(world.database, self.process, world.loop, world.chance)
        self.ledger.sent_under = world.sent_under
        # In the order in which they came: a set would have another one in each process.
        self._serving: dict[asyncio.Future[None], None] = {}
        self._calls = Calls(self.ledger, Admission(self.ledger), Keys(world.keys, world.loop.time))
        self._config = config
        self.routes = self._route(config)
        self.ready = False
        world.loop.start(self.process, self._configure(config))

    def _route(self, config: GatewayConfig) -> Routes:
        world = self._world
        upstreams = {
            provider.name: SimulatedProvider(
                provider.name,
                {m.upstream_name: m.prices for m in provider.models if m.prices is not None},
                world.bill,
                world.sent_under.__getitem__,
                world.loop,
                world.chance,
            )
            for provider in config.providers
        }
        return Routes(
            config,
            Consumers(config.accounts),
            catalogues(config),
            cast("dict[str, Upstream]", upstreams),
        )

    def configure(self, config: GatewayConfig) -> None:
        """Take over a new configuration, as from the ConfigMap."""
        self.routes = Routes(
            config, Consumers(config.accounts), catalogues(config), self.routes.upstreams
        )
        self._world.loop.start(self.process, self._configure(config))

    async def _configure(self, config: GatewayConfig) -> None:
        while True:
            try:
                await self.ledger.configure(
                    config.accounts, time_zone=config.time_zone, generation=config.generation
                )
            except LedgerError:
                await asyncio.sleep(1.0)
            else:
                self.ready = True
                return

    async def serve(self, caller: Caller) -> None:
        """Answer a call, or break off when the gateway dies."""
        reply: asyncio.Future[None] = self._world.loop.create_future()
        self._serving[reply] = None
        self._world.loop.start(self.process, self._serve(caller, reply))
        try:
            await reply
        finally:
            self._serving.pop(reply, None)

    async def _serve(self, caller: Caller, reply: asyncio.Future[None]) -> None:
        try:
            await self._answer(caller)
        except Refusal as refusal:
            caller.status = refusal.status
        except LedgerError as error:
            caller.status = refusal_of(error).status
        except Exception as error:
            self._world.faults.append(error)
        if not reply.done():
            reply.set_result(None)

    async def _answer(self, caller: Caller) -> None:
        routes = self.routes
        consumer = routes.consumers.match("apps", "agent", None)
        request, exchange = cast(Request, caller), cast(Exchange, caller)
        await self._calls.serve(
            CHAT, routes, consumer, request, exchange, lambda _: None, call_story()
        )

    def kill(self) -> None:
        """End it between two instructions."""
        self.process.alive = False
        for reply in list(self._serving):
            if not reply.done():
                reply.set_exception(Gone())


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to."""

    answers: Counter[str]
    events: Counter[str]
    billed: int
    """By the providers, nano-USD."""
    charged: int
    """By the ledger, nano-USD."""
    trace: tuple[str, ...]


class World:
    """One run."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.loop = Clockwork()
        self.keys = folder / "keys"
        self.keys.mkdir(exist_ok=True)
        for provider in PROVIDERS:
            (self.keys / provider.name).write_text(KEY)
        self.database = Database(folder / f"{seed}.db", self.loop)
        self.bill = Bill()
        self.sent_under: dict[str, str] = {}
        self.faults: list[Exception] = []
        self.trace: list[str] = []
        self.events: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.caps: dict[str, list[int]] = {ROOT: [], TEAM: []}
        self.hanging = 0
        self._config = self._next_configuration(1)
        self._gateways: list[Gateway] = []
        self._born: list[Gateway] = []
        """All that there ever were: a task that is forgotten would run on to its end."""

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
            self.database.restart()

    # What happens

    async def _story(self) -> None:
        self._gateways = [self._new_gateway() for _ in range(3)]
        await asyncio.sleep(1.0)
        everything = asyncio.gather(self._trouble(), *(self._caller(at) for at in range(CALLERS)))
        broken = self.database.broken
        done, _ = await asyncio.wait({everything, broken}, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
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

    async def _trouble(self) -> None:
        while self.loop.now < SECONDS:
            await asyncio.sleep(self.chance.expovariate(1 / 2.5))
            name, what = self.chance.choice(self._troubles())
            self.note(name)
            await what()

    def _troubles(self) -> list[tuple[str, Any]]:
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
        while self.loop.now < SECONDS:
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

    def note(self, what: str) -> None:
        """Take down what happened."""
        self.events["calls" if ": " in what else what] += 1
        self.trace.append(f"{self.loop.now:9.4f} {what}")

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
