"""Several gateways of one budget on one PostgreSQL database, and the books that they leave."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Any

import psycopg
from tests.support.gateway_process import GatewayProcess
from tests.support.postgres_server import PostgresServer

from llmbudget.ledger.audit.report import audit
from llmbudget.ledger.audit.sources import database_source
from llmbudget.ledger.interface import Entry
from llmbudget.ledger.postgres.rows import Rows

FOLDER, FILE = "database", "uri"
"""Where a test's folder has the connection string."""


class SharedLedger:
    """A schema of a server, as one budget's ledger, and the file with its connection string."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.server = server
        self.name = f"l{secrets.token_hex(6)}"
        self.file = folder / FOLDER / FILE
        server.make_role(self.name)
        self.url = server.url(user=self.name, schema=self.name)
        self.file.parent.mkdir()
        self.file.write_text(self.url)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    async def entries(self, seconds: float = 60) -> list[Entry]:
        """Read all rows once no hold is left."""
        deadline = time.monotonic() + seconds
        while self.query("SELECT count(*) FROM holds") != [(0,)]:
            assert time.monotonic() < deadline, (
                f"holds are never resolved: {self.query('SELECT id, period, epoch FROM holds')}; "
                f"owners: {self.query('SELECT * FROM owners')}"
            )
            await asyncio.sleep(0.2)
        with psycopg.connect(self.url) as connection:
            return Rows(connection).entries(0, 10**7)

    def check_sums(self) -> None:
        """The ledger is sound, and nothing is held."""
        assert self.query("SELECT count(*) FROM holds") == [(0,)]
        with database_source(self.file) as found:
            assert not audit(found).findings


async def start_all(gateways: list[GatewayProcess], seconds: float = 60) -> None:
    """Start gateways, all at once."""
    for gateway in gateways:
        gateway.start()
    for gateway in gateways:
        await gateway.ready(seconds)
