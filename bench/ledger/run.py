"""Holds and settles of the ledger beside bare SQL statements that commit in the same groups.

    python bench/ledger/run.py [--calls N] [--group N]

The peer is what any ledger on SQLite must at least do: one row inserted for a hold, moved for a
settle and an account's sum updated, with apsw, WAL and synchronous=FULL, `group` calls a commit.
The ledger does it from `group` concurrent callers of an event loop, with caps, the path of
accounts, thresholds, periods and followers. Both run on the same disk, one after the other, three
times; the printed ratio is the median one.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import apsw

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig, Threshold
from llmbudget.ledger.interface import HoldRequest, Settlement
from llmbudget.ledger.sqlite import SqliteLedger

ROUNDS = 3
ACCOUNTS = [
    AccountConfig(
        name="llm/org",
        cap_nano=10**15,
        thresholds=(Threshold(percentage=80, action=Action.NOTIFY_ADMIN),),
        providers=(),
    ),
    AccountConfig(name="llm/team", parent="llm/org", cap_nano=10**15, providers=()),
]


def bare(path: Path, calls: int, group: int) -> float:
    """Calls a second of bare statements."""
    file = apsw.Connection(str(path))
    file.pragma("journal_mode", "wal")
    file.pragma("synchronous", "full")
    file.execute("CREATE TABLE sums (spent INTEGER, held INTEGER); INSERT INTO sums VALUES (0, 0)")
    file.execute("CREATE TABLE holds (id TEXT PRIMARY KEY, amount INTEGER) WITHOUT ROWID")
    file.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, cost INTEGER)")
    began = time.perf_counter()
    for first in range(0, calls, group):
        ids = [f"call-{number}" for number in range(first, first + group)]
        with file:
            for id in ids:
                file.execute("INSERT INTO holds VALUES (?, 10)", (id,))
                file.execute("UPDATE sums SET held = held + 10")
        with file:
            for id in ids:
                file.execute("DELETE FROM holds WHERE id = ?", (id,))
                file.execute("INSERT INTO entries (id, cost) VALUES (?, 7)", (id,))
                file.execute("UPDATE sums SET held = held - 10, spent = spent + 7")
    took = time.perf_counter() - began
    file.close()
    return calls / took


async def ours(path: Path, calls: int, group: int) -> float:
    """Calls a second of the ledger."""
    ledger = await SqliteLedger.open(path)
    await ledger.configure(ACCOUNTS, time_zone="UTC", generation=1)

    async def call(caller: int) -> None:
        for number in range(calls // group):
            id = f"call-{caller}-{number}"
            await ledger.hold(HoldRequest(id, "llm/team", Nano(10), "provider", "model"))
            await ledger.settle(id, Settlement(Nano(7), 100, 20))

    began = time.perf_counter()
    await asyncio.gather(*(call(caller) for caller in range(group)))
    took = time.perf_counter() - began
    assert ledger.balance("llm/org").spent == 7 * (calls // group) * group
    await ledger.close()
    return calls / took


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=12_800)
    parser.add_argument("--group", type=int, default=64)
    options = parser.parse_args()
    ratios = []
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as directory:
            peer = bare(Path(directory) / "bare.db", options.calls, options.group)
            found = asyncio.run(ours(Path(directory) / "ledger.db", options.calls, options.group))
        ratios.append(found / peer)
        print(f"round {number + 1}: ledger {found:,.0f} calls/s, bare SQL {peer:,.0f} calls/s")
    print(f"ledger : bare SQL = {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
