"""What the ledger's tests say often."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import apsw
import psycopg
from tests.support.postgres_server import PostgresServer

from llmbudget.api.budget import Action, OnExceeded
from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig, Threshold
from llmbudget.ledger.audit.report import Report, audit
from llmbudget.ledger.audit.sources import database_source, file_source
from llmbudget.ledger.book import Book
from llmbudget.ledger.interface import EnvelopeRequest, HoldRequest
from llmbudget.ledger.operations import Operations
from llmbudget.ledger.postgres import PostgresLedger
from llmbudget.ledger.postgres import store as postgres_store
from llmbudget.ledger.postgres.connection import Database
from llmbudget.ledger.postgres.migrations import migrate
from llmbudget.ledger.sqlite import SqliteLedger
from llmbudget.ledger.sqlite import store as sqlite_store

Result = TypeVar("Result")


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
    **others: Any,
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
        **others,
    )


def ask(id: str, amount: int = 10, account: str = "llm/org", **others: str) -> HoldRequest:
    return HoldRequest(
        id=id, account=account, amount=Nano(amount), provider="openrouter", model="large", **others
    )


def task(id: str, amount: int = 50, account: str = "llm/org", **others: Any) -> EnvelopeRequest:
    values: dict[str, Any] = {
        "consumer": "team/lead",
        "users": ("team/lead", "team/helper"),
        "lifetime": timedelta(days=5),
        "most_amount": Nano(10**9),
        "most_open": 100,
    }
    return EnvelopeRequest(id=id, account=account, amount=Nano(amount), **(values | others))


def within(envelope: str, id: str, amount: int = 10, account: str = "llm/org") -> HoldRequest:
    """Ask for a call that is paid from an envelope."""
    return ask(id, amount, account, envelope=envelope, consumer="team/helper")


@contextmanager
def reading(path: Path) -> Iterator[apsw.Connection]:
    """Read the file. Not by the standard library's SQLite: a second copy of SQLite in a process
    takes the first one's locks away when it closes the file."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        yield connection
    finally:
        connection.close()


class Store(Protocol):
    def transact(self, run: Callable[[Book], Result]) -> Result: ...

    def crash(self) -> None:
        """Let go of everything, as a process that dies."""


class Engine(ABC):
    """One ledger of an engine, and a look behind it."""

    path: str
    """An entry's path as one text, in SQL."""

    @abstractmethod
    async def open(self) -> Operations: ...

    @abstractmethod
    def store(self) -> Store:
        """Begin to own the ledger, as a new process does."""

    @abstractmethod
    def query(self, statement: str) -> list[tuple[Any, ...]]: ...

    @abstractmethod
    def clear(self) -> None:
        """Begin anew with an empty ledger."""

    @abstractmethod
    def audited(self) -> Report:
        """Audit it as `llmbudget ledger verify` does."""

    def count(self, table: str) -> int:
        return self.query(f"SELECT count(*) FROM {table}")[0][0]


class SqliteEngine(Engine):
    path = "path"

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.file = folder / "ledger.db"
        self.clock = clock

    async def open(self) -> SqliteLedger:
        return await SqliteLedger.open(self.file, self.clock)

    def store(self) -> Store:
        return SqliteStore(self.file, self.clock)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with reading(self.file) as connection:
            return connection.execute(statement).fetchall()

    def audited(self) -> Report:
        with file_source(self.file) as source:
            return audit(source)

    def clear(self) -> None:
        for file in self.file.parent.glob(f"{self.file.name}*"):
            file.unlink()


class SqliteStore:
    def __init__(self, path: Path, clock: Clock) -> None:
        self._store = sqlite_store.Store(path, clock)
        self._store.take_over()

    def transact(self, run: Callable[[Book], Result]) -> Result:
        with self._store.transaction(durable=False) as book:
            return run(book)

    def crash(self) -> None:
        self._store.close()


class PostgresEngine(Engine):
    """In a schema of its own. Who stands still is dead at once, since there is one owner here."""

    path = "array_to_string(path, ' ')"

    def __init__(self, folder: Path, clock: Clock, server: PostgresServer) -> None:
        self.server = server
        self.name = f"l{secrets.token_hex(6)}"
        self.file = folder / "postgres" / "uri"
        self.clock = clock
        server.make_role(self.name)
        self.file.parent.mkdir(exist_ok=True)
        self.url = server.url(user=self.name, schema=self.name)
        self.file.write_text(self.url)
        self._connection = psycopg.connect(self.url, autocommit=True)

    async def open(self, lease_seconds: float = 0.0, name: str = "llm/gateway") -> PostgresLedger:
        return await PostgresLedger.open(
            self.file, name, lambda _: self.clock.now, lease_seconds=lease_seconds
        )

    def store(self) -> Store:
        return PostgresStore(Database(self.file), self.clock)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(statement)
        return cursor.fetchall() if cursor.description else []

    def audited(self) -> Report:
        with database_source(self.file) as source:
            return audit(source)

    def clear(self) -> None:
        self.server.execute(f"DROP SCHEMA {self.name} CASCADE")
        self.server.execute(f"CREATE SCHEMA {self.name} AUTHORIZATION {self.name}")


class PostgresStore:
    def __init__(self, database: Database, clock: Clock) -> None:
        migrate(database)
        self._store = postgres_store.Store(database, "llm/gateway", lambda _: clock.now, 0.0)
        self._store.transact(lambda book: None)

    def transact(self, run: Callable[[Book], Result]) -> Result:
        return self._store.transact(run).result

    def crash(self) -> None:
        self._store.close()
