"""What the ledger's tests say often."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import apsw

from llmbudget.api.budget import Action, OnExceeded
from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig, Threshold
from llmbudget.ledger.interface import HoldRequest


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 15, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def account(
    name: str = "llm/org",
    cap: int | None = 100,
    parent: str | None = None,
    thresholds: tuple[tuple[int, Action], ...] = (),
    ladder: tuple[str, ...] = ("large", "medium", "small"),
    on_exceeded: OnExceeded = OnExceeded.BLOCK,
    approved_period: str | None = None,
) -> AccountConfig:
    return AccountConfig(
        name=name,
        parent=parent,
        cap_nano=cap,
        thresholds=tuple(Threshold(percentage=p, action=a) for p, a in thresholds),
        ladder=ladder,
        on_exceeded=on_exceeded,
        approved_period=approved_period,
        providers=(),
    )


def ask(id: str, amount: int = 10, account: str = "llm/org", **others: str) -> HoldRequest:
    return HoldRequest(
        id=id, account=account, amount=Nano(amount), provider="openrouter", model="large", **others
    )


@contextmanager
def reading(path: Path) -> Iterator[apsw.Connection]:
    """Read the file. Not by the standard library's SQLite: a second copy of SQLite in a process
    takes the first one's locks away when it closes the file."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        yield connection
    finally:
        connection.close()


def count(path: Path, table: str) -> int:
    with reading(path) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
