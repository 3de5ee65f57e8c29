"""Holds and settles of a ledger in PostgreSQL beside bare SQL that commits in the same groups.

    python -m bench.ledger.postgres [--seconds S] [--owners N …] [--groups N …]

The peer is what any ledger on PostgreSQL must at least do, by psycopg in pipelines: lock the row of
what is spent, and look at it; insert a row for each hold, or move it for each settle, add to the
sums, commit. So it takes two round trips as the ledger does, for `group` calls at once. The ledger
does it from `group` concurrent callers of an event loop, with caps, the path of accounts,
thresholds, periods, owners and followers. Owners are processes, as gateways are, and all of them
spend one budget (the hot row), or a thousand in turn. Both run on one server, in turn, `ROUNDS`
times; the printed ratio is the median one.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

import psycopg
from bench.report import say
from tests.support.postgres_server import PostgresServer

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig, Threshold
from llmbudget.ledger.interface import HoldRequest, Settlement
from llmbudget.ledger.postgres import PostgresLedger

ROUNDS: Final = 3
ROOT: Final = "llm/org"
_TABLES: Final = """
CREATE TABLE sums (account text PRIMARY KEY, spent bigint, held bigint) WITH (fillfactor = 20);
CREATE TABLE holds (id text PRIMARY KEY, account text, amount bigint);
CREATE TABLE entries (id text PRIMARY KEY, account text, cost bigint);
"""
_HELD: Final = (
    "INSERT INTO holds SELECT id, account, 10 "
    "FROM unnest(%s::text[], %s::text[]) AS t(id, account)",
    "UPDATE sums SET held = held + 10 * n FROM unnest(%s::text[], %s::int8[]) AS t(account, n) "
    "WHERE sums.account = t.account",
)
_SETTLED: Final = (
    "INSERT INTO entries SELECT id, account, 7 "
    "FROM unnest(%s::text[], %s::text[]) AS t(id, account)",
    "UPDATE sums SET held = held - 10 * n, spent = spent + 7 * n FROM "
    "unnest(%s::text[], %s::int8[]) AS t(account, n) WHERE sums.account = t.account",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What one owner does."""

    file: Path
    budgets: int
    group: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """Calls that were held and settled, and how long each took, in seconds."""

    calls: int
    took: list[float]


Run = Callable[[Load, int, Barrier], Done]


def accounts(budgets: int) -> list[str]:
    """Name the budgets that are spent."""
    return [f"llm/team-{number}" for number in range(budgets)]


def bare(load: Load, owner: int, start: Barrier) -> Done:
    """Hold and settle by bare statements."""
    names = itertools.cycle(accounts(load.budgets))
    took: list[float] = []
    with psycopg.connect(load.file.read_text(), autocommit=True) as connection:

        def commit(statements: tuple[str, str], ids: list[str], of: list[str]) -> None:
            counts = {name: of.count(name) for name in dict.fromkeys((*of, ROOT))}
            counts[ROOT] = len(of)
            with connection.pipeline():
                connection.execute("BEGIN")
                locked = connection.execute(
                    "SELECT spent FROM sums WHERE account = %s FOR UPDATE", (ROOT,)
                )
                locked.fetchone()
                connection.execute(statements[0], (ids, of))
                if statements is _SETTLED:
                    connection.execute("DELETE FROM holds WHERE id = ANY(%s)", (ids,))
                connection.execute(statements[1], (list(counts), list(counts.values())))
                connection.execute("COMMIT")

        start.wait()
        ends = time.perf_counter() + load.seconds
        for group in itertools.count():
            began = time.perf_counter()
            if began >= ends:
                break
            ids = [f"{owner}-{group}-{number}" for number in range(load.group)]
            of = [next(names) for _ in ids]
            commit(_HELD, ids, of)
            commit(_SETTLED, ids, of)
            took.append(time.perf_counter() - began)
    return Done(len(took) * load.group, took)


def ours(load: Load, owner: int, start: Barrier) -> Done:
    """Hold and settle by the ledger."""
    return asyncio.run(_ours(load, owner, start))


async def _ours(load: Load, owner: int, start: Barrier) -> Done:
    ledger = await PostgresLedger.open(load.file, ROOT)
    names = itertools.cycle(accounts(load.budgets))
    took: list[float] = []

    async def call(caller: int) -> None:
        for number in itertools.count():
            began = time.perf_counter()
            if began >= ends:
                return
            id = f"call-{owner}-{caller}-{number}"
            await ledger.hold(HoldRequest(id, next(names), Nano(10), "provider", "model"))
            await ledger.settle(id, Settlement(Nano(7), 100, 20))
            took.append(time.perf_counter() - began)

    await asyncio.to_thread(start.wait)
    ends = time.perf_counter() + load.seconds
    await asyncio.gather(*(call(caller) for caller in range(load.group)))
    await ledger.close()
    return Done(len(took), took)


def _prepare_bare(file: Path, budgets: int) -> None:
    with psycopg.connect(file.read_text(), autocommit=True) as connection:
        connection.execute(_TABLES)
        rows = [(name,) for name in (ROOT, *accounts(budgets))]
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO sums VALUES (%s, 0, 0)", rows)


def _prepare_ours(file: Path, budgets: int) -> None:
    async def configure() -> None:
        threshold = Threshold(percentage=80, action=Action.NOTIFY_ADMIN)
        cap = 10**15
        root = AccountConfig(name=ROOT, cap_nano=cap, thresholds=(threshold,), providers=())
        children = [
            AccountConfig(name=name, parent=ROOT, cap_nano=cap, providers=())
            for name in accounts(budgets)
        ]
        ledger = await PostgresLedger.open(file, ROOT)
        await ledger.configure([root, *children], time_zone="UTC", generation=1)
        await ledger.close()

    asyncio.run(configure())


def _serve(
    run: Run, load: Load, owner: int, start: Barrier, found: multiprocessing.Queue[Done]
) -> None:
    found.put(run(load, owner, start))


def together(run: Run, load: Load, owners: int) -> Done:
    """Let owners run at once, each a process."""
    context = multiprocessing.get_context("spawn")
    start, found = context.Barrier(owners), context.Queue()
    processes = [
        context.Process(target=_serve, args=(run, load, owner, start, found))
        for owner in range(owners)
    ]
    for process in processes:
        process.start()
    each = [found.get(timeout=load.seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    return Done(sum(d.calls for d in each), sorted(t for d in each for t in d.took))


class Bench:
    """One server, and a schema for each measurement."""

    def __init__(self, server: PostgresServer, folder: Path, seconds: float) -> None:
        self._server = server
        self._folder = folder
        self._seconds = seconds
        self._schemas = itertools.count()

    def compare(self, budgets: int, owners: int, group: int) -> None:
        """Measure both in turn, and print the median round."""
        rounds = []
        for _ in range(ROUNDS):
            peer = self._measure(bare, _prepare_bare, budgets, owners, group)
            found = self._measure(ours, _prepare_ours, budgets, owners, group)
            rounds.append((found.calls / peer.calls, peer, found))
        ratio = statistics.median(ratio for ratio, _, _ in rounds)
        _, peer, found = min(rounds, key=lambda each: abs(each[0] - ratio))
        middle, late = (found.took[int(len(found.took) * share)] * 1000 for share in (0.5, 0.99))
        say(
            f"{budgets:>5} budgets, {owners:>2} owners, groups of {group:>3}: "
            f"ledger {found.calls / self._seconds:>6,.0f} calls/s "
            f"(p50 {middle:.1f} ms, p99 {late:.1f} ms), "
            f"bare SQL {peer.calls / self._seconds:>6,.0f} calls/s, ratio {ratio:.2f}"
        )

    def _measure(
        self, run: Run, prepare: Callable[[Path, int], None], budgets: int, owners: int, group: int
    ) -> Done:
        name = f"bench_{next(self._schemas)}"
        self._server.make_role(name)
        file = self._folder / name
        file.write_text(self._server.url(user=name, schema=name))
        prepare(file, budgets)
        return together(run, Load(file, budgets, group, self._seconds), owners)


def main() -> None:
    """Measure each combination that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--owners", type=int, nargs="+", default=[1, 5, 15])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 1000])
    options = parser.parse_args()
    server = PostgresServer()
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(server, Path(folder), options.seconds)
            for each in itertools.product(options.budgets, options.owners, options.groups):
                bench.compare(*each)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
