"""The ledger on a disk that is full, that hangs, or whose flush fails after the bytes were
written."""

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from tests.support.audits import assert_sound

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.ledger.interface import Hold, HoldRequest, LedgerUnavailable, Settlement
from llmbudget.ledger.sqlite import SqliteLedger

ACCOUNTS = [AccountConfig(name="llm/org", cap_nano=10**12, providers=())]


def ask(id: str) -> HoldRequest:
    return HoldRequest(id, "llm/org", Nano(10), "p", "m", task_id="x" * 500)


async def fill(ledger: SqliteLedger, prefix: str, count: int) -> list[object]:
    asked = (ledger.hold(ask(f"{prefix}-{n}")) for n in range(count))
    return await asyncio.gather(*asked, return_exceptions=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


async def test_full_disk_refuses_and_nothing_is_half_granted(small_disk):
    path = small_disk / "ledger.db"
    ledger = await SqliteLedger.open(path)
    await ledger.configure(ACCOUNTS, time_zone="UTC", generation=1)
    granted: list[str] = []
    refused: list[LedgerUnavailable] = []
    for number in range(100):
        for result in await fill(ledger, str(number), 50):
            if isinstance(result, Hold):
                granted.append(result.id)
            else:
                assert isinstance(result, LedgerUnavailable)
                refused.append(result)
        if refused:
            break
    assert granted
    assert str(path) in str(refused[0])
    assert "full" in str(refused[0])
    assert ledger.balance("llm/org").held == 10 * len(granted)
    assert_sound(path)
    remount = ["mount", "-o", "remount,size=16m", str(small_disk)]
    await asyncio.to_thread(subprocess.run, remount, check=True)
    assert isinstance(await ledger.hold(ask("after")), Hold)
    for id in [*granted, "after"]:
        assert (await ledger.settle(id, Settlement(Nano(3)))).cost == 3
    assert len(await ledger.entries(limit=10**6)) == len(granted) + 1
    assert ledger.balance("llm/org").spent == 3 * (len(granted) + 1)
    assert ledger.balance("llm/org").held == 0
    await ledger.close()
    assert_sound(path)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def hanging_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, that can be frozen: whoever writes waits until it is thawed."""
    image, mounted = tmp_path / "disk", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(32 * 1024 * 1024)
    try:
        run("mkfs.ext4", "-q", image)
        run("mount", "-o", "loop", image, mounted)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system, and mkfs.ext4")
    yield mounted
    with contextlib.suppress(subprocess.CalledProcessError):
        run("fsfreeze", "--unfreeze", mounted)
    run("umount", "--lazy", mounted)


async def test_a_disk_that_hangs_holds_up_no_one_but_who_needs_it(hanging_disk):
    """One call alone, whose commit the event loop waits for; and others, which it does not."""
    ledger = await SqliteLedger.open(hanging_disk / "ledger.db")
    await ledger.configure(ACCOUNTS, time_zone="UTC", generation=1)
    await ledger.hold(ask("before"))
    for round_ in range(2):
        run("fsfreeze", "--freeze", hanging_disk)
        hold = asyncio.create_task(ledger.hold(ask(f"frozen-{round_}")))
        # The loop comes round though nothing is written: else nobody would thaw the disk.
        for _ in range(50):
            await asyncio.sleep(0.01)
        assert not hold.done()
        assert ledger.balance("llm/org").held == 10 * (1 + round_)
        run("fsfreeze", "--unfreeze", hanging_disk)
        assert isinstance(await hold, Hold)
    assert ledger.balance("llm/org").held == 30
    for id in ("before", "frozen-0", "frozen-1"):
        assert (await ledger.settle(id, Settlement(Nano(3)))).cost == 3
    await ledger.close()
    assert_sound(hanging_disk / "ledger.db")


class FailingFile(apsw.VFSFile):
    """Writes everything, then says that the flush failed, while `broken` is set."""

    broken = False

    def xSync(self, flags: int) -> None:
        if FailingFile.broken:
            raise apsw.IOError("the disk is gone")
        super().xSync(flags)


class FailingDisk(apsw.VFS):
    def __init__(self) -> None:
        super().__init__("failing", "unix", makedefault=True)

    def xOpen(self, name, flags):
        return FailingFile("unix", name, flags)


@pytest.fixture
def failing_disk() -> Iterator[None]:
    disk = FailingDisk()
    yield
    FailingFile.broken = False
    disk.unregister()


@pytest.mark.usefixtures("failing_disk")
async def test_hold_whose_flush_failed_was_not_granted(tmp_path):
    ledger = await SqliteLedger.open(tmp_path / "ledger.db")
    await ledger.configure(ACCOUNTS, time_zone="UTC", generation=1)
    await ledger.hold(ask("before"))
    FailingFile.broken = True
    refused = await fill(ledger, "lost", 20)
    assert all(isinstance(result, LedgerUnavailable) for result in refused)
    FailingFile.broken = False
    await ledger.hold(ask("after"))
    assert ledger.balance("llm/org").held == 20
    assert (await ledger.settle("before", Settlement(Nano(7)))).cost == 7
    await ledger.close()
    again = await SqliteLedger.open(tmp_path / "ledger.db")
    assert again.balance("llm/org").spent == 17
    assert sum(entry.cost for entry in await again.entries()) == 17
    await again.close()
