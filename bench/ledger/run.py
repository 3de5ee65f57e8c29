"""Holds and settles of the ledger in a file beside its own statements by the driver alone.

    python -m bench.ledger.run [--small] [--seconds S] [--rounds N] [--groups N …] [--budgets N …]

A file belongs to one gateway. `group` concurrent callers of an event loop hold and settle, on one
budget or on a thousand in turn; the raw limit (`bench/ledger/raw.py`) does the same rows in
transactions of as many calls. Both run on the same disk, in turn; the ratio is the median round's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
from pathlib import Path

from bench.ledger.measuring import HEAD, Cell, Done, Load, configs, drive, tell_waits, verdict
from bench.ledger.raw import sqlite_run
from bench.report import Target

from llmbudget.ledger.sqlite import SqliteLedger


async def _open(load: Load) -> SqliteLedger:
    ledger = await SqliteLedger.open(load.file)
    await ledger.configure(configs(load.budgets), time_zone="UTC", generation=1)
    return ledger


async def ours(load: Load) -> Done:
    """Hold and settle by the ledger."""
    ledger = await _open(load)
    done = await drive(ledger, load, "0")
    await ledger.close()
    return done


async def prepare(load: Load) -> None:
    """Make the file for the raw limit."""
    await (await _open(load)).close()


async def waits(seconds: float) -> list[Target]:
    """Measure what one caller waits for."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = await _open(Load(Path(folder) / "alone.db", 1, 1, seconds))
        found = await tell_waits(ledger, 1, seconds)
        await ledger.close()
        return found


def compare(budgets: int, group: int, seconds: float, rounds: int) -> Cell:
    """Measure both in turn."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            load = Load(Path(folder) / "raw.db", budgets, group, seconds)
            asyncio.run(prepare(load))
            raw = sqlite_run(load)
            load = Load(Path(folder) / "ledger.db", budgets, group, seconds)
            found.append((asyncio.run(ours(load)), raw))
    return Cell(budgets, 1, group, found)


def main() -> None:
    """Measure each combination that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="one round of a second")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 1000])
    options = parser.parse_args()
    seconds, rounds = (1.0, 1) if options.small else (options.seconds, options.rounds)
    print(f"SQLite, {seconds:g} s each, median of {rounds}; one gateway, to which the file belongs")
    print(HEAD)
    cells = []
    for budgets, group in itertools.product(options.budgets, options.groups):
        cells.append(compare(budgets, group, seconds, rounds))
        print(cells[-1], flush=True)
    print(*verdict(cells), *asyncio.run(waits(seconds)), sep="\n")


if __name__ == "__main__":
    main()
