"""Slices beside asking the budget's database for each call, where that takes 20 ms there and back.

Fifteen gateways spend one budget. In central mode each asks its database, through a proxy that
delays what passes by 10 ms each way (toxiproxy). With slices each is a region with a database of
its own beside it, and asks through the same proxy for slices, and to ship its rows; the time until
the last row is shipped counts too. Gateways are processes, and all databases are of one server:
what slices come to is what the cores of one machine do, of which each region has its own.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

import psycopg
from bench.ledger.measuring import ROOT, Done, Load, configs, drive, together
from bench.report import Target
from tests.support.postgres_server import PostgresServer
from tests.support.toxiproxy import Toxiproxy

from llmbudget.ledger.interface import Ledger
from llmbudget.ledger.postgres import PostgresLedger
from llmbudget.ledger.postgres.connection import Database
from llmbudget.ledger.postgres.migrations import migrate
from llmbudget.ledger.regions.regional import RegionalLedger

GATEWAYS: Final = 15
DELAY_MS: Final = 10
"""Each way."""
CALLERS: Final = 16
"""Of each gateway."""
_SHIPPED_SECONDS: Final = 60.0


def central(load: Load, gateway: int, start: Barrier) -> Done:
    """Ask for each call."""
    return asyncio.run(_central(load, gateway, start))


async def _central(load: Load, gateway: int, start: Barrier) -> Done:
    return await _spend(await PostgresLedger.open(load.file, ROOT), load, gateway, start)


def sliced(load: Load, gateway: int, start: Barrier) -> Done:
    """Spend slices, and see that all rows arrive."""
    return asyncio.run(_sliced(load, gateway, start))


async def _sliced(load: Load, gateway: int, start: Barrier) -> Done:
    region = _beside(load.file, gateway)
    ledger = RegionalLedger(load.file, region, ROOT, f"region-{gateway}")
    await ledger.configure(configs(load.budgets), time_zone="UTC", generation=1)
    return await _spend(ledger, load, gateway, start)


async def _spend(ledger: Ledger, load: Load, gateway: int, start: Barrier) -> Done:
    await asyncio.to_thread(start.wait)
    began = time.perf_counter()
    done = await drive(ledger, load, str(gateway))
    await asyncio.to_thread(_arrived, load, gateway, done.calls)
    seconds = time.perf_counter() - began
    await ledger.close()
    return replace(done, seconds=seconds)


def _arrived(load: Load, gateway: int, calls: int) -> None:
    """Wait until the budget's database has the rows of all calls."""
    deadline = time.monotonic() + _SHIPPED_SECONDS
    url = _beside(load.file, "direct").read_text()
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            found = connection.execute(
                "SELECT count(*) FROM entries WHERE starts_with(id, %s)", (f"call-{gateway}-",)
            ).fetchone()
            if found == (calls,):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{found} of {calls} rows have arrived")
            time.sleep(0.05)


def _beside(file: Path, name: object) -> Path:
    return file.with_name(f"{file.name}_{name}")


def compare(server: PostgresServer, folder: Path, seconds: float) -> Target:
    """Measure both in turn, and print them."""
    proxy = Toxiproxy([server.port])
    try:
        runs = {
            run: _prepare(server, folder, run.__name__, proxy.ports[0]) for run in (central, sliced)
        }
        proxy.delay(DELAY_MS)
        print(
            f"\nOne budget, {GATEWAYS} gateways of {CALLERS} callers, {2 * DELAY_MS} ms to its "
            f"database and back; {seconds:g} s, and until all rows are there"
        )
        print(f"{'mode':>10}{'calls/s':>10}{'p50 ms':>9}{'p99 ms':>9}")
        rates = []
        for run, file in runs.items():
            done = together(run, [Load(file, 1, CALLERS, seconds)] * GATEWAYS)
            rates.append(done.rate)
            print(
                f"{run.__name__:>10}{done.rate:>10,.0f}{done.at(0.5):>9.2f}{done.at(0.99):>9.2f}",
                flush=True,
            )
    finally:
        proxy.stop()
    target = Target("times central mode", rates[1] / rates[0], 5, least=True)
    print(target)
    return target


def _prepare(server: PostgresServer, folder: Path, name: str, port: int) -> Path:
    """Make the budget's database, and a region's for each gateway; tell where it is, through the
    proxy."""
    server.make_role(name)
    file = folder / name
    file.write_text(server.url(user=name, schema=name))
    asyncio.run(_configure(file))
    file.rename(_beside(file, "direct"))
    file.write_text(server.url(user=name, schema=name, port=port))
    for number in range(GATEWAYS if name == sliced.__name__ else 0):
        region = f"{name}_{number}"
        server.make_role(region)
        _beside(file, number).write_text(server.url(user=region, schema=region))
        migrate(Database(_beside(file, number)))
    return file


async def _configure(file: Path) -> None:
    ledger = await PostgresLedger.open(file, ROOT)
    await ledger.configure(configs(1), time_zone="UTC", generation=1)
    await ledger.close()
