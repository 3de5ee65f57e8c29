"""The database of a ledger fails: its disk is full, its server is gone, it is a standby."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from tests.support.audits import assert_sound
from tests.support.postgres_server import PostgresServer
from tests.support.shared_ledger import SharedLedger

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.ledger.interface import Hold, HoldRequest, LedgerUnavailable, Settlement
from llmbudget.ledger.postgres import PostgresLedger, store

NAME = "llm/org"
ACCOUNTS = [AccountConfig(name=NAME, cap_nano=10**12, providers=())]


def forget(shared: SharedLedger) -> None:
    """Its server is gone when all ledgers of this test are audited."""
    shared.file.unlink()


def fill_up(file: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as output:
        while True:
            output.write(bytes(1 << 16))


def ask(id: str) -> HoldRequest:
    return HoldRequest(id, NAME, Nano(10), "p", "m", task_id=secrets.token_hex(1500))


async def opened(shared: SharedLedger) -> PostgresLedger:
    ledger = await PostgresLedger.open(shared.file, NAME)
    await ledger.configure(ACCOUNTS, time_zone="UTC", generation=1)
    return ledger


async def fill(ledger: PostgresLedger) -> tuple[list[str], list[LedgerUnavailable]]:
    """Hold until it is refused; tell what was granted, and the refusals."""
    granted: list[str] = []
    refused: list[LedgerUnavailable] = []
    for group in range(400):
        asked = (ledger.hold(ask(f"{group}-{n}")) for n in range(50))
        for result in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(result, Hold):
                granted.append(result.id)
            else:
                assert isinstance(result, LedgerUnavailable), result
                refused.append(result)
        if refused:
            return granted, refused
    raise AssertionError("the disk was never full")


async def settle_all(ledger: PostgresLedger, ids: list[str]) -> None:
    entries = await asyncio.gather(*(ledger.settle(id, Settlement(Nano(3))) for id in ids))
    assert {entry.cost for entry in entries} == {3}
    balance = ledger.balance(NAME)
    assert (balance.spent, balance.held) == (3 * len(ids), 0)


async def held_again(ledger: PostgresLedger, id: str, seconds: float = 60) -> None:
    """Ask until it is granted."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            await ledger.hold(ask(id))
        except LedgerUnavailable as error:
            if time.monotonic() > deadline:
                raise AssertionError("it is not granted again") from error
            await asyncio.sleep(0.2)
        else:
            return


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that tests may kill. What is not flushed at each commit is flushed late."""
    made = PostgresServer(("wal_writer_delay=10s",))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def shared(server: PostgresServer, tmp_path: Path) -> SharedLedger:
    return SharedLedger(server, tmp_path)


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of its own, where the server's user may write."""
    with tempfile.TemporaryDirectory(prefix="llmbudget-disk-") as name:
        size = f"size={megabytes}m,mode=1777"
        mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", name]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
        Path(name).chmod(0o1777)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


# Its disk


async def test_full_disk_refuses_and_nothing_is_half_granted(
    server: PostgresServer, shared: SharedLedger
) -> None:
    """Of the tables: the server goes on, and refuses what would make them grow."""
    with small_disk(4) as disk:
        server.give(disk)
        space = f"space_{shared.name}"
        server.execute(f"CREATE TABLESPACE {space} LOCATION '{disk}'")
        server.execute(f"GRANT CREATE ON TABLESPACE {space} TO {shared.name}")
        server.execute(f"ALTER ROLE {shared.name} SET default_tablespace = {space}")
        ledger = await opened(shared)
        granted, refused = await fill(ledger)
        assert granted
        assert "No space left on device" in str(refused[0])
        assert "make room on the database's disk" in str(refused[0])
        assert ledger.problem == str(refused[-1])
        assert shared.query("SELECT count(*) FROM holds") == [(len(granted),)]
        assert shared.query("SELECT held FROM account_periods") == [(10 * len(granted),)]
        assert_sound(shared.file)
        larger = ["mount", "-o", "remount,size=32m", str(disk)]
        await asyncio.to_thread(subprocess.run, larger, check=True)
        await held_again(ledger, "after")
        await settle_all(ledger, [*granted, "after"])
        assert ledger.problem is None
        await ledger.close()
        assert_sound(shared.file)
        server.execute(f"DROP SCHEMA {shared.name} CASCADE")
        server.execute(f"DROP OWNED BY {shared.name}")
        server.execute(f"DROP TABLESPACE {space}")
        forget(shared)


async def test_full_disk_of_the_log_stops_the_server_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PostgreSQL can't write its log, it ends itself."""
    with small_disk(128) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        server = PostgresServer()
        monkeypatch.undo()
        server.start()
        shared = SharedLedger(server, tmp_path)
        try:
            ledger = await opened(shared)
            ids = [f"{number}" for number in range(20)]
            for id in ids:
                await ledger.hold(ask(id))
            ballast = disk / "ballast"
            await asyncio.to_thread(fill_up, ballast)
            with contextlib.suppress(psycopg.Error):
                server.execute("SELECT pg_switch_wal()")  # A whole new file of it is needed now.
            with pytest.raises(LedgerUnavailable) as refused:
                await ledger.hold(ask("refused"))
            assert str(shared.file) in str(refused.value)
            assert ledger.problem == str(refused.value)
            ballast.unlink()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await held_again(ledger, "after")
            await settle_all(ledger, [*ids, "after"])
            assert shared.query("SELECT id FROM holds") == []
            await ledger.close()
            assert_sound(shared.file)
        finally:
            forget(shared)
            server.stop()


# Its server


@pytest.mark.parametrize("how", ["role", "connection string"])
async def test_what_is_granted_is_on_the_disk_whatever_the_databases_default(
    server: PostgresServer, shared: SharedLedger, how: str
) -> None:
    """With synchronous_commit off, a commit would be lost that was answered ten seconds ago."""
    if how == "role":
        server.execute(f"ALTER ROLE {shared.name} SET synchronous_commit = off")
    else:
        shared.file.write_text(f"{shared.url}%20-csynchronous_commit%3Doff")
    ledger = await opened(shared)
    for number in range(5):
        await ledger.hold(ask(f"{number}"))
    await asyncio.to_thread(server.kill_hard)
    await asyncio.to_thread(server.start)
    assert shared.query("SELECT count(*) FROM holds") == [(5,)]
    await settle_all(ledger, [f"{number}" for number in range(5)])
    await ledger.close()


async def test_a_server_that_goes_away_denies_and_loses_nothing(
    server: PostgresServer, shared: SharedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 0.5)
    ledger = await opened(shared)
    await ledger.hold(ask("before"))
    await asyncio.to_thread(server.kill_hard)
    for id in ("1", "2"):
        with pytest.raises(LedgerUnavailable, match=f"{shared.file}: .*Connection refused"):
            await ledger.hold(ask(id))
    with pytest.raises(LedgerUnavailable, match="Connection refused"):
        await ledger.settle("before", Settlement(Nano(3)))
    with pytest.raises(LedgerUnavailable, match="Connection refused"):
        await PostgresLedger.open(shared.file, NAME)
    late = PostgresLedger(shared.file, NAME)
    with pytest.raises(LedgerUnavailable, match="Connection refused"):
        await late.hold(ask("late"))
    await asyncio.to_thread(server.start)
    await held_again(late, "late")
    await settle_all(ledger, ["before", "late"])
    assert shared.query("SELECT id FROM holds") == []
    await late.close()
    await ledger.close()


async def test_a_standby_grants_nothing_until_it_is_promoted(tmp_path: Path) -> None:
    primary = PostgresServer(("synchronous_standby_names=*",))
    primary.start()
    standby = PostgresServer(standby_of=primary)
    standby.start()
    shared = SharedLedger(primary, tmp_path)
    try:
        before = await opened(shared)
        await before.hold(ask("before"))
        shared.file.write_text(standby.url(user=shared.name, schema=shared.name))
        with pytest.raises(LedgerUnavailable, match="this is a standby: name the primary"):
            await PostgresLedger.open(shared.file, NAME)
        waiting = PostgresLedger(shared.file, NAME)
        with pytest.raises(LedgerUnavailable, match="this is a standby"):
            await waiting.hold(ask("1"))
        assert "this is a standby" in (waiting.problem or "")
        await asyncio.to_thread(primary.kill_hard)
        await asyncio.to_thread(standby.promote)
        await held_again(waiting, "after")
        await settle_all(before, ["before", "after"])
        await waiting.close()
        await before.close()
        assert_sound(shared.file)
    finally:
        forget(shared)
        standby.stop()
        primary.stop()
