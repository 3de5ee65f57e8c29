"""kill -9 of a process that holds and settles, at random moments, again and again.

The child writes each grant and each settle that it was told of to a pipe: what it was told before
it died must be in the file, once, with sums that agree.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from llmbudget.contract.config import AccountConfig
from llmbudget.ledger.interface import Outcome
from llmbudget.ledger.sqlite import SqliteLedger

CHILD = """
import asyncio, os, sys
from pathlib import Path
from llmbudget.api.money import Nano
from llmbudget.ledger.interface import HoldRequest, Settlement
from llmbudget.ledger.sqlite import SqliteLedger

def say(word, id):
    os.write(1, f"{word} {id}\\n".encode())

async def spend(ledger, prefix):
    for n in range(10**6):
        id = f"{prefix}-{n}"
        await ledger.hold(HoldRequest(id, "llm/team", Nano(10), "p", "m"))
        say("hold", id)
        if n % 7 == 0:
            await ledger.release(id)
            say("release", id)
        elif n % 5:
            await ledger.settle(id, Settlement(Nano(n % 13)))
            say("settle", id)

async def main():
    ledger = await SqliteLedger.open(Path(sys.argv[1]))
    say("open", "-")
    await asyncio.gather(*(spend(ledger, f"{sys.argv[2]}-{n}") for n in range(20)))

asyncio.run(main())
"""
ROUNDS = 6
ACCOUNTS = [
    AccountConfig(name="llm/org", cap_nano=10**12, providers=()),
    AccountConfig(name="llm/team", parent="llm/org", cap_nano=None, providers=()),
]


def run_and_kill(path: Path, name: str, lines: int) -> dict[str, set[str]]:
    """Let a child say some lines, kill it, and read the rest of what it said."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), name], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said: dict[str, set[str]] = {word: set() for word in ("open", "hold", "settle", "release")}
    for count, line in enumerate(child.stdout):
        word, id = line.split()
        said[word].add(id)
        if count == lines:
            os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    return said


@pytest.mark.slow
async def test_what_was_granted_before_a_kill_is_in_the_file_once(tmp_path):
    path = tmp_path / "ledger.db"
    chance = random.Random(3)
    ledger = await SqliteLedger.open(path)
    await ledger.configure(ACCOUNTS, time_zone="UTC", generation=1)
    await ledger.close()
    held: set[str] = set()
    finished: set[str] = set()
    for number in range(ROUNDS):
        said = await asyncio.to_thread(run_and_kill, path, str(number), chance.randint(1, 2000))
        held |= said["hold"]
        finished |= said["settle"] | said["release"]
    ledger = await SqliteLedger.open(path)
    entries = await ledger.entries(limit=10**6)
    by_id = {entry.id: entry for entry in entries}
    assert len(by_id) == len(entries)
    assert held <= by_id.keys()
    assert all(by_id[id].outcome is not Outcome.UNKNOWN for id in finished)
    lost = [entry for entry in entries if entry.id not in finished]
    assert all(e.cost == e.held for e in lost if e.outcome is Outcome.UNKNOWN)
    assert any(e.outcome is Outcome.UNKNOWN for e in lost), "nothing was under way at any kill"
    for balance in ledger.balances().values():
        assert (balance.spent, balance.held) == (sum(entry.cost for entry in entries), 0)
    await ledger.close()
    file = apsw.Connection(str(path))
    assert file.pragma("integrity_check") == "ok"
    file.close()
