"""Holds and settles of the ledger in PostgreSQL beside its own statements by the driver alone.

    python -m bench.ledger.postgres [--small] [--seconds S] [--rounds N]
        [--owners N …] [--groups N …] [--budgets N …] [--no-slices]

Gateways are processes. In each, `group` concurrent callers of an event loop hold and settle, all on
one budget (the hot row), or on a thousand in turn. The raw limit (`bench/ledger/raw.py`) does the
same rows from as many processes, in transactions of as many calls and as many round trips. Both run
on one server, in turn; the ratio is the median round's. Then slices are compared with asking the
database for each call (`bench/ledger/slices.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.ledger import slices
from bench.ledger.measuring import (
    HEAD,
    ROOT,
    Cell,
    Done,
    Load,
    Run,
    configs,
    drive,
    tell_waits,
    together,
    verdict,
)
from bench.ledger.raw import postgres_run
from bench.report import Target
from tests.support.postgres_server import PostgresServer

from llmbudget.ledger.postgres import PostgresLedger


def ours(load: Load, owner: int, start: Barrier) -> Done:
    """Hold and settle by the ledger."""
    return asyncio.run(_ours(load, owner, start))


async def _ours(load: Load, owner: int, start: Barrier) -> Done:
    ledger = await PostgresLedger.open(load.file, ROOT)
    await asyncio.to_thread(start.wait)
    done = await drive(ledger, load, str(owner))
    await ledger.close()
    return done


async def prepare(file: Path, budgets: int) -> None:
    """Make the tables, with budgets in them."""
    ledger = await PostgresLedger.open(file, ROOT)
    await ledger.configure(configs(budgets), time_zone="UTC", generation=1)
    await ledger.close()


class Bench:
    """One server, and a schema for each measurement."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._schemas = itertools.count()

    def compare(self, budgets: int, owners: int, group: int, seconds: float, rounds: int) -> Cell:
        """Measure both in turn."""
        found = []
        for _ in range(rounds):
            raw, mine = (
                self._measure(run, budgets, owners, group, seconds) for run in (postgres_run, ours)
            )
            found.append((mine, raw))
        return Cell(budgets, owners, group, found)

    async def waits(self, seconds: float) -> list[Target]:
        """Measure what one caller waits for."""
        ledger = await PostgresLedger.open(await self._prepared(1), ROOT)
        found = await tell_waits(ledger, 1, seconds)
        await ledger.close()
        return found

    async def _prepared(self, budgets: int) -> Path:
        name = f"bench_{next(self._schemas)}"
        self._server.make_role(name)
        file = self._folder / name
        file.write_text(self._server.url(user=name, schema=name))
        await prepare(file, budgets)
        return file

    def _measure(self, run: Run, budgets: int, owners: int, group: int, seconds: float) -> Done:
        file = asyncio.run(self._prepared(budgets))
        return together(run, [Load(file, budgets, group, seconds)] * owners)


def main() -> None:
    """Measure each combination that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a second of few combinations")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--owners", type=int, nargs="+", default=[1, 5, 15])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--no-slices", action="store_true")
    options = parser.parse_args()
    if options.small:
        options.seconds, options.owners, options.groups = 1.0, [1, 15], [1, 64]
    server = PostgresServer()
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(server, Path(folder))
            print(f"PostgreSQL, {options.seconds:g} s each, median of {options.rounds}")
            print(HEAD)
            cells = []
            for each in itertools.product(options.budgets, options.owners, options.groups):
                cells.append(bench.compare(*each, options.seconds, options.rounds))
                print(cells[-1], flush=True)
            waits = asyncio.run(bench.waits(options.seconds))
            print(*verdict(cells), *waits, sep="\n")
            if not options.no_slices:
                slices.compare(server, Path(folder), 4.0 if options.small else 10.0)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
