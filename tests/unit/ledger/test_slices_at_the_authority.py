"""What the authority's book does with slices: moves, and operations that are committed together."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.support.shared_ledger import SharedLedger
from tests.unit.ledger.ledger_helpers import account

from llmbudget.ledger.records import Holder
from llmbudget.ledger.regions.ledgers import AuthorityLedger

ROOT, LEFT, RIGHT, TEAM = "llm/org", "llm/left", "llm/right", "llm/team"
CAP = 16_000
US = Holder("h1", "us")


@pytest.fixture
async def database(tmp_path, postgres) -> AsyncIterator[SharedLedger]:
    made = SharedLedger(postgres, tmp_path)
    yield made
    made.check_sums()


@pytest.fixture
async def ledger(database) -> AsyncIterator[AuthorityLedger]:
    made = AuthorityLedger(database.file, ROOT)
    yield made
    await made.close()


async def tree(ledger: AuthorityLedger, above: str, generation: int) -> None:
    """Have the team below one of two accounts."""
    await ledger.configure(
        (
            account(ROOT, CAP),
            account(LEFT, CAP, ROOT),
            account(RIGHT, CAP, ROOT),
            account(TEAM, None, above),
        ),
        time_zone="UTC",
        generation=generation,
    )


def held(database: SharedLedger) -> dict[str, int]:
    return dict(database.query("SELECT account, held FROM account_periods WHERE held > 0"))


async def test_an_account_that_moves_takes_along_what_is_granted_in_the_same_transaction(
    database, ledger
) -> None:
    await tree(ledger, LEFT, 1)
    await ledger.grant(US, TEAM, 10, 10)
    granted, _ = await asyncio.gather(ledger.grant(US, TEAM, 500, 500), tree(ledger, RIGHT, 2))
    assert database.query("SELECT granted, path FROM slices") == [
        (granted.total, [TEAM, RIGHT, ROOT])
    ]
    assert held(database) == dict.fromkeys((TEAM, RIGHT, ROOT), granted.total)
    again = await ledger.grant(US, TEAM, 10, 10)
    assert again.total == granted.total + again.size
