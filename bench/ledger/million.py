"""Million bench: what is a gateway, and what is its ledger, after a million calls?

    python -m bench.ledger.million [--calls N] [--slice SECONDS]

wrk sends calls through a gateway with everything on until the ledger has a million rows. Then the
gateway is started again on that file, the rows are exported, and, with the clock set on by a year,
dropped by the retention while other calls are held and settled. The peer is bare SQL that writes as
many rows of the same columns, in transactions of as many rows: what any ledger on SQLite must at
least write.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import apsw
from bench.gateway.run import CAP, KEY, OURS, PRICES, settled_rows
from bench.gateway.streams import memory
from bench.gateway.wrk import Load, measure
from bench.peers import nginx, our_gateway
from bench.report import Target, say

from llmbudget.api.money import Nano
from llmbudget.gateway.retention import BATCH, PAUSE_SECONDS
from llmbudget.ledger.interface import HoldRequest, Settlement
from llmbudget.ledger.sqlite import SqliteLedger
from llmbudget.ledger.sqlite.schema import connect_reading
from llmbudget.local.binaries import find
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.process import spawn
from llmbudget.local.stage import PROGRAM, Stage

CONNECTIONS: Final = 32
GROUP: Final = 16
"""Rows in a transaction of the peer: about as many as 32 connections bring together."""
_MEGABYTE: Final = 1024 * 1024
_YEAR: Final = timedelta(days=366)


@dataclass
class Figures:
    """What was found of a ledger's file."""

    rows: int = 0
    size: float = 0.0
    """Megabytes."""
    log: float = 0.0
    """Megabytes of the write-ahead log at its longest."""
    slowest_ms: float = 0.0
    """Longest that a call, or a commit of the peer, took."""
    start_empty: float = 0.0
    start_full: float = 0.0
    """Seconds until the gateway is ready."""
    export: float = 0.0
    """Seconds to read all rows."""
    dropped: float = 0.0
    """Seconds to drop all rows but the last."""
    dropping_ms: float = 0.0
    """Longest that a hold and its settle took meanwhile."""
    reused: float = 0.0
    """Megabytes of the file that are free for new rows afterwards."""
    rest: float = 0.0
    """Megabytes of memory of a gateway that has not been called."""
    warm: float = 0.0
    """The same after the first slice of calls."""
    last: float = 0.0
    """The same after the last."""


async def called(calls: int, seconds: int, folder: Path) -> tuple[Figures, Path]:
    """Send calls through a gateway, start it again, and export what it wrote; the file is returned
    as well.

    Raises:
        SystemExit: a call, or the export, failed.
    """
    found, loads = Figures(), list[Load]()
    plane = ControlPlane(folder / "cluster", say=say)
    async with (
        plane,
        Stage(folder / "stage", plane.kubeconfig, find(lambda _: None).kubectl) as stage,
        nginx.upstream(folder) as port,
    ):
        config = our_gateway.configuration(PRICES, CAP, f"http://127.0.0.1:{port}/v1", 1)
        tokens = await our_gateway.prepare(config, KEY, folder, stage)
        began = time.monotonic()
        async with our_gateway.serving(tokens, folder, stage) as gateway:
            found.start_empty = time.monotonic() - began
            found.rest = memory((gateway.process.pid,))
            log = gateway.ledger.with_name(f"{gateway.ledger.name}-wal")
            while sum(load.requests for load in loads) < calls:
                load = await measure(
                    gateway.url,
                    gateway.tokens,
                    connections=CONNECTIONS,
                    seconds=seconds,
                    folder=folder,
                )
                if load.refused or load.broken:
                    raise SystemExit("bench: calls failed")
                loads.append(load)
                found.last = memory((gateway.process.pid,))
                found.warm = found.warm or found.last
                found.log = max(found.log, log.stat().st_size / _MEGABYTE)
                say(f"million: {sum(each.requests for each in loads):,} calls")
        found.slowest_ms = max(load.most_ms for load in loads)
        found.size = gateway.ledger.stat().st_size / _MEGABYTE
        began = time.monotonic()
        async with our_gateway.serving(tokens, folder, stage) as gateway:
            found.start_full = time.monotonic() - began
    began = time.monotonic()
    process = await spawn(
        [PROGRAM, "usage", "export", f"--ledger={gateway.ledger}", f"--output={folder / 'rows'}"]
    )
    if await process.wait():
        raise SystemExit("bench: the export failed")
    found.export = time.monotonic() - began
    found.rows = settled_rows(gateway.ledger)
    return found, gateway.ledger


async def dropped(file: Path, found: Figures) -> None:
    """Let the retention drop the rows, a year later, while calls go on.

    Raises:
        SystemExit: the months' sums changed.
    """
    before = _sums(file)
    ledger = await SqliteLedger.open(file, lambda: datetime.now(UTC) + _YEAR)
    slowest = 0.0
    going = True

    async def call() -> None:
        nonlocal slowest
        number = 0
        while going:
            began, id = time.monotonic(), f"meanwhile-{number}"
            await ledger.hold(HoldRequest(id, our_gateway.ACCOUNT, Nano(10), "provider", "model"))
            await ledger.settle(id, Settlement(Nano(7), 100, 20))
            slowest = max(slowest, time.monotonic() - began)
            number += 1
            await asyncio.sleep(0.001)

    caller = asyncio.create_task(call())
    began = time.monotonic()
    period = ledger.balance(our_gateway.ACCOUNT).period.name
    while await ledger.forget(period, BATCH):
        await asyncio.sleep(PAUSE_SECONDS)
    found.dropped = time.monotonic() - began
    going = False
    await caller
    await ledger.close()
    found.dropping_ms = slowest * 1000
    if [row for row in _sums(file) if row in before] != before:
        raise SystemExit("bench: the retention changed a month's sums")
    connection = connect_reading(file)
    free = int(connection.pragma("freelist_count")) * int(connection.pragma("page_size"))
    connection.close()
    found.reused = free / _MEGABYTE


def _sums(file: Path) -> list[tuple[object, ...]]:
    connection = connect_reading(file)
    try:
        return list(
            connection.execute("SELECT account, period, spent FROM account_periods ORDER BY 1, 2")
        )
    finally:
        connection.close()


def bare(source: Path, file: Path, group: int) -> Figures:
    """Write the ledger's rows by bare SQL, `group` a commit, and read them again."""
    found, slowest = Figures(), 0.0
    connection = apsw.Connection(str(file))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    origin = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)
    names = [column[1] for column in origin.execute("PRAGMA table_info(entries)")]
    marks = ", ".join("?" * len(names))
    connection.execute(f"CREATE TABLE entries ({', '.join(names)}, PRIMARY KEY (seq))")
    connection.execute("CREATE UNIQUE INDEX ids ON entries (id)")
    connection.execute("CREATE TABLE sums (spent INTEGER); INSERT INTO sums VALUES (0)")
    rows = iter(origin.execute("SELECT * FROM entries ORDER BY seq"))
    log = file.with_name(f"{file.name}-wal")
    while batch := list(itertools.islice(rows, group)):
        began = time.monotonic()
        with connection:
            connection.executemany(f"INSERT INTO entries VALUES ({marks})", batch)
            connection.execute("UPDATE sums SET spent = spent + 1")
        slowest = max(slowest, time.monotonic() - began)
        found.rows += len(batch)
    found.log = log.stat().st_size / _MEGABYTE
    origin.close()
    began = time.monotonic()
    for _ in connection.execute("SELECT * FROM entries ORDER BY seq"):
        pass
    found.export = time.monotonic() - began
    connection.close()
    found.size = file.stat().st_size / _MEGABYTE
    found.slowest_ms = slowest * 1000
    return found


def table(ours: Figures, peer: Figures) -> Iterable[str]:
    """Lay the ledger beside the bare rows, and tell whether the targets are met."""
    yield f"A ledger of {ours.rows:,} rows"
    yield f"  {'':<34}{OURS:>12}{'bare SQL':>12}{'ratio':>8}"
    for what, figure in (
        ("file, MB", "size"),
        ("write-ahead log, MB", "log"),
        ("slowest call | commit, ms", "slowest_ms"),
        ("export | reading the rows, s", "export"),
    ):
        found, bare = getattr(ours, figure), getattr(peer, figure)
        yield f"  {what:<34}{found:>12.1f}{bare:>12.1f}{found / bare:>8.2f}"
    yield f"  start, empty ledger: {ours.start_empty:.2f} s, this one: {ours.start_full:.2f} s"
    yield (
        f"  retention: all rows but the last dropped in {ours.dropped:.1f} s, {ours.reused:.0f} MB "
        f"free for new ones; slowest hold and settle meanwhile {ours.dropping_ms:.1f} ms"
    )
    yield f"  memory: {ours.rest:.0f} MB at rest, {ours.warm:.0f} warm, {ours.last:.0f} at the end"
    growth = 100 * (ours.last / ours.warm - 1)
    yield str(Target("memory grown since it was warm", growth, 10, unit="%"))


async def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description="Million bench")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--slice", type=int, default=10, help="seconds of each turn of wrk")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="million-bench-") as name:
        folder = Path(name)
        ours, file = await called(options.calls, options.slice, folder)
        say("million: bare SQL")
        peer = await asyncio.to_thread(bare, file, folder / "bare.db", GROUP)
        say("million: retention")
        await dropped(file, ours)
    print("\n".join(table(ours, peer)))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
