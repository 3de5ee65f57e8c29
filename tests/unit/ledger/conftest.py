"""A ledger in a file with a clock that the test moves."""

from collections.abc import AsyncIterator

import pytest
from tests.unit.ledger.ledger_helpers import Clock

from llmbudget.ledger.sqlite import SqliteLedger


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ledger(tmp_path, clock) -> AsyncIterator[SqliteLedger]:
    opened = await SqliteLedger.open(tmp_path / "ledger.db", clock)
    yield opened
    await opened.close()
