"""A ledger of either engine, with a clock that the test moves."""

from collections.abc import AsyncIterator

import pytest
from tests.support.postgres_server import PostgresServer
from tests.unit.ledger.ledger_helpers import Clock, Engine, PostgresEngine, SqliteEngine

from llmbudget.ledger.operations import Operations


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request, tmp_path, clock) -> Engine:
    if request.param == "sqlite":
        return SqliteEngine(tmp_path, clock)
    server: PostgresServer = request.getfixturevalue("postgres")
    return PostgresEngine(tmp_path, clock, server)


@pytest.fixture
async def ledger(engine) -> AsyncIterator[Operations]:
    opened = await engine.open()
    yield opened
    await opened.close()
    assert not engine.audited().findings
