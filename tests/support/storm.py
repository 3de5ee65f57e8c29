"""A storm over many gateways on one database: callers without pause, and everything that may break
breaking. What is said by whom is taken down, for the books to be compared afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from tests.support.cutting_proxy import CuttingProxy
from tests.support.faked_clock import FakedClock
from tests.support.gateway_process import GatewayProcess
from tests.support.postgres_server import PostgresServer
from tests.support.shared_ledger import SharedLedger
from tests.support.toxiproxy import Toxiproxy

from llmbudget.api.money import parse_usd

MONTH = 31 * 24 * 3600
_REFUSED = re.compile(r"has ([\d.]+) USD left .* may cost up to ([\d.]+) USD")
_AMOUNT = re.compile(r"\d+\.\d+")
_SETTINGS = ("wal_sender_timeout=0", "wal_receiver_timeout=0", "max_wal_senders=4")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    gateways: int = 15
    callers: int = 200
    cap: int = 150_000_000
    """Nano-USD a month."""
    kill_seconds: float = 1.0
    """Between two gateways that are killed."""
    patience_seconds: float = 300.0
    """For a month's cap to be spent."""
    seed: int = 20261


@dataclass(frozen=True, slots=True)
class Refused:
    """A 402, as its caller saw it."""

    at: float
    """Of the database's clock, POSIX seconds."""
    left: int
    asked: int
    era: int
    """How often the clock had been moved."""


@dataclass(slots=True)
class Seen:
    """What the callers saw."""

    codes: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Of 502 and 503."""
    refused: list[Refused] = field(default_factory=list)
    kills: int = 0
    cuts: int = 0
    toxics: int = 0
    eras: list[int] = field(default_factory=list)
    """The last row's number when the clock was moved, each time."""
    log: list[str] = field(default_factory=list)


class Databases:
    """A primary and its synchronous standby, whose clock can be moved."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakedClock()
        environment = self.clock.environment
        self.primary = PostgresServer((*_SETTINGS, "synchronous_standby_names=*"), environment)
        self.primary.start()
        self.standby = PostgresServer(_SETTINGS, environment, standby_of=self.primary)
        # Before the first commit, which waits for it.
        self.standby.start()
        self.ledger = SharedLedger(self.primary, folder)
        self.serving = self.primary

    def url(self, port: int) -> str:
        """Write a connection string that finds whichever is the primary; `port` leads to it now."""
        url = self.primary.url(user=self.ledger.name, schema=self.ledger.name, port=port)
        url = url.replace(f"127.0.0.1:{port}/", f"127.0.0.1:{port},127.0.0.1:{self.standby.port}/")
        return f"{url}&target_session_attrs=read-write"

    def promote(self) -> None:
        """The primary is gone for good; the standby takes its place."""
        self.primary.kill_hard()
        self.standby.promote()
        self.serving = self.ledger.server = self.standby
        name = self.ledger.name
        self.ledger.url = self.standby.url(user=name, schema=name)
        self.ledger.file.write_text(self.ledger.url)

    def now(self) -> float:
        """Tell the database's time."""
        return time.time() + self.clock.offset

    def stop(self) -> None:
        self.standby.stop()
        self.primary.stop()
        self.clock.stop()


class Storm:
    """Gateways, callers and what befalls them."""

    def __init__(self, plan: Plan, databases: Databases, first: GatewayProcess, token: str) -> None:
        self.seen = Seen()
        self._plan = plan
        self._databases = databases
        self._token = token
        self._chance = random.Random(plan.seed)
        self._proxies = [CuttingProxy(databases.primary.port) for _ in range(3)]
        self._toxiproxy = Toxiproxy([databases.primary.port] * 3)
        self.gateways = [first.beside() for _ in range(plan.gateways)]
        proxied = [*(proxy.port for proxy in self._proxies), *self._toxiproxy.ports]
        for number, gateway in enumerate(self.gateways):
            port = proxied[number] if number < len(proxied) else databases.primary.port
            gateway.postgres = first.folder / f"database-{number}" / "uri"
            gateway.postgres.parent.mkdir()
            gateway.postgres.write_text(databases.url(port))
        self._moving = asyncio.Event()

    async def run(self) -> None:
        """Let it blow, through two months and a promotion, and calm down."""
        for gateway in self.gateways:
            gateway.start()
        await asyncio.gather(*(gateway.ready(240) for gateway in self.gateways))
        calling = [asyncio.create_task(self._call_on(n)) for n in range(self._plan.callers)]
        breaking = [
            asyncio.create_task(each)
            for each in (self._kill_on(), self._cut_on(), self._poison_on())
        ]
        databases = self._databases
        try:
            await self._half_spent("the first month")
            await self._say("the server is killed", databases.primary.kill_hard)
            await self._say("and started", databases.primary.start)
            await self._spent("the first month")
            await self._move("a month on", MONTH)
            await self._half_spent("the second month")
            await self._move("two hours back", -7200)
            await self._say("the server is killed", databases.primary.kill_hard)
            await self._say("and started", databases.primary.start)
            await self._spent("the second month")
            await self._move("another month on", MONTH)
            await self._half_spent("the third month")
            await self._say("the standby is promoted", databases.promote)
            await self._spent("the third month")
        finally:
            for task in breaking:
                task.cancel()
            broken = await asyncio.gather(*breaking, return_exceptions=True)
            assert all(isinstance(found, asyncio.CancelledError) for found in broken), broken
            await asyncio.to_thread(self._toxiproxy.heal)
            await asyncio.sleep(1)
            for task in calling:
                task.cancel()
            await asyncio.gather(*calling, return_exceptions=True)
            self.seen.cuts = sum(proxy.cuts for proxy in self._proxies)
            self.seen.toxics = self._toxiproxy.toxics
            for proxy in self._proxies:
                proxy.close()

    def stop(self) -> None:
        """End all gateways in order."""
        for gateway in self.gateways:
            if gateway.process is not None:
                gateway.process.terminate()
        for gateway in self.gateways:
            if gateway.process is not None:
                gateway.process.wait(60)
        self._toxiproxy.stop()

    # What befalls them

    async def _say(self, what: str, do: object) -> None:
        self.seen.log.append(f"{time.monotonic():.1f} {what}")
        await asyncio.to_thread(do)  # type: ignore[arg-type]

    async def _move(self, what: str, seconds: int) -> None:
        # Who is refused while the clock is moved can't be told which month refused him.
        self._moving.set()
        await asyncio.sleep(2)
        await self._say(what, lambda: self._databases.clock.move(seconds))
        await asyncio.sleep(2)
        self.seen.eras.append(await asyncio.to_thread(self._last_row))
        await asyncio.sleep(2)
        self._moving.clear()

    def _last_row(self) -> int:
        (found,) = self._databases.serving.execute(
            f"SELECT last_seq FROM {self._databases.ledger.name}.ledger"
        )
        return int(found[0])

    def _share(self) -> float:
        """Ask which share of the month's cap is spent."""
        with contextlib.suppress(psycopg.Error):
            found = self._databases.ledger.query(
                "SELECT spent + overage + debit FROM account_periods "
                "WHERE period = (SELECT period FROM ledger)"
            )
            return float(found[0][0]) / self._plan.cap if found else 0.0
        return 0.0

    async def _until_share(self, share: float, what: str) -> None:
        deadline = time.monotonic() + self._plan.patience_seconds
        while (found := await asyncio.to_thread(self._share)) < share:
            assert time.monotonic() < deadline, f"{what}: {found:.0%} spent; {self.seen}"
            await asyncio.sleep(0.3)

    async def _half_spent(self, what: str) -> None:
        await self._until_share(0.3, what)

    async def _spent(self, what: str) -> None:
        """Wait until callers are told so."""
        await self._until_share(0.95, what)
        deadline, told = time.monotonic() + self._plan.patience_seconds, len(self.seen.refused)
        while len(self.seen.refused) < told + 20:
            assert time.monotonic() < deadline, f"{what}: nobody is refused; {self.seen}"
            await asyncio.sleep(0.3)

    async def _kill_on(self) -> None:
        while True:
            await asyncio.sleep(self._plan.kill_seconds)
            serving = [each for each in self.gateways if await _serves(each.port)]
            if len(serving) * 3 < len(self.gateways) * 2:
                continue  # A busy machine starts them more slowly than this would kill them.
            gateway = self._chance.choice(serving)
            await asyncio.to_thread(gateway.kill)
            self.seen.kills += 1
            gateway.start()

    async def _cut_on(self) -> None:
        """Cut connections: at the answer to a COMMIT, or from the server's side."""
        while True:
            await asyncio.sleep(0.5)
            self._chance.choice(self._proxies).cut_next_commit()
            with contextlib.suppress(psycopg.Error):
                await asyncio.to_thread(
                    self._databases.serving.execute,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                    "application_name = 'llmbudget' AND backend_type = 'client backend' "
                    "ORDER BY random() LIMIT 1",
                )

    async def _poison_on(self) -> None:
        """Let toxiproxy spoil the connections of one gateway after the other."""
        chance = random.Random(self._plan.seed)
        while True:
            await asyncio.to_thread(self._toxiproxy.poison, chance)
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            await asyncio.to_thread(self._toxiproxy.heal)
            await asyncio.sleep(chance.uniform(0.5, 1.5))

    # Callers

    async def _call_on(self, number: int) -> None:
        chance = random.Random(self._plan.seed + number)
        while True:
            gateway = chance.choice(self.gateways)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
                await self._calls(gateway.port, chance)
            await asyncio.sleep(chance.uniform(0.05, 0.3))

    async def _calls(self, port: int, chance: random.Random) -> None:
        """Make some calls by one connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for _ in range(chance.randint(1, 20)):
                writer.write(self._request(chance))
                code, body = await _answer(reader)
                self.seen.codes[code] += 1
                if code == 402:
                    self._take_down(body)
                elif code in (502, 503):
                    self.seen.reasons[_AMOUNT.sub("…", json.loads(body)["error"]["message"])] += 1
                if code != 200:
                    await asyncio.sleep(chance.uniform(0.2, 1.0))
        finally:
            writer.close()

    def _request(self, chance: random.Random) -> bytes:
        words = chance.randint(1, 200)
        document = {
            "model": chance.choice(("small", "small", "large")),
            "messages": [{"role": "user", "content": f"say {words} words" + " x" * words}],
            "max_tokens": chance.choice((200, 300)),
        }
        content = json.dumps(document).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
            f"authorization: Bearer {self._token}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def _take_down(self, body: bytes) -> None:
        found = _REFUSED.search(body.decode())
        if found is not None and not self._moving.is_set():
            left, asked = (parse_usd(text) for text in found.groups())
            now, era = self._databases.now(), len(self.seen.eras)
            self.seen.refused.append(Refused(now, left, asked, era))


async def _serves(port: int) -> bool:
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:  # A timeout is one, too.
        return False
    writer.close()
    return True


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)
