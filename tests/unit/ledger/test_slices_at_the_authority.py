"""What the authority's book does with slices: moves, and operations that are committed together."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.shared_ledger import SharedLedger
from tests.unit.ledger.ledger_helpers import account, ask

from llmbudget.api.money import Nano
from llmbudget.contract.config import BorrowingConfig
from llmbudget.decide.periods import months_before
from llmbudget.ledger.interface import Entry, Outcome, Settlement
from llmbudget.ledger.records import Holder
from llmbudget.ledger.regions.ledgers import AuthorityLedger
from llmbudget.ledger.regions.messages import Told

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


async def test_the_tables_that_came_before_are_replaced_also_in_the_same_transaction(
    database, ledger
) -> None:
    await tree(ledger, LEFT, 1)
    old, new = Holder("old", "us"), Holder("new", "us")
    await asyncio.gather(ledger.grant(old, TEAM, 10, 10), ledger.grant(new, TEAM, 10, 10))
    states = database.query("SELECT id, lost, replaced FROM holders ORDER BY id")
    assert states == [("new", False, False), ("old", True, True)]


async def borrowing(ledger: AuthorityLedger, generation: int, limit: int | None) -> None:
    """Have the left one borrow of the right one, or let them share nothing from now on."""
    terms = [None if limit is None else BorrowingConfig(limit_nano=each) for each in (limit, 0)]
    await ledger.configure(
        (
            account(ROOT, None),
            account(LEFT, 10, ROOT, borrowing=terms[0]),
            account(RIGHT, 100, ROOT, borrowing=terms[1]),
        ),
        time_zone="UTC",
        generation=generation,
    )


async def test_what_a_region_gives_back_is_not_lent_by_former_terms_any_more(
    database, ledger
) -> None:
    await borrowing(ledger, 1, 50)
    granted = await ledger.grant(US, LEFT, 60, 60)
    await borrowing(ledger, 2, None)
    assert ledger.balance(LEFT).borrowed == 50
    await ledger.hear(US, Told(0, [], {(LEFT, granted.period): 20}))
    assert (ledger.balance(LEFT).borrowed, ledger.balance(RIGHT).lent) == (30, 30)
    assert ledger.balance(LEFT).remaining == 0


async def write_off(ledger: AuthorityLedger) -> None:
    await ledger._submit(lambda book: book.write_off([US.id]))


async def test_what_is_charged_as_unknown_stays_borrowed(database, ledger) -> None:
    await borrowing(ledger, 1, 50)
    await ledger.grant(US, LEFT, 60, 60)
    await borrowing(ledger, 2, None)
    await write_off(ledger)
    assert (ledger.balance(LEFT).borrowed, ledger.balance(LEFT).spent) == (50, 60)
    late = row(ledger, 1, account=LEFT, cost=Nano(60), held=Nano(60))
    await ledger.hear(US, Told(0, [late], {}))
    assert (ledger.balance(LEFT).borrowed, ledger.balance(LEFT).spent) == (50, 60)
    assert ledger.balance(LEFT).held == 0


async def test_what_nobody_knows_is_charged_to_who_was_above_it_then(database, ledger) -> None:
    spent = (
        "SELECT account, spent + overage FROM account_periods WHERE account IN "
        f"('{LEFT}', '{RIGHT}') ORDER BY 1"
    )
    await tree(ledger, LEFT, 1)
    first = await ledger.grant(US, TEAM, 10, 10)
    await write_off(ledger)
    await tree(ledger, RIGHT, 2)
    second = await ledger.grant(US, TEAM, 10, 10)
    await write_off(ledger)
    rows = "SELECT path[2], cost, held FROM entries WHERE provider = 'slice' ORDER BY seq"
    assert database.query(rows) == [
        (LEFT, first.size, first.size),
        (RIGHT, second.size, second.size),
    ]
    assert database.query(spent) == [(LEFT, first.size), (RIGHT, second.size)]
    # What comes back is taken from the newest first, and from who was charged.
    back = {(TEAM, first.period): second.size + 10}
    await ledger.hear(US, Told(0, [], back))
    assert [cost for _, cost, _ in database.query(rows)] == [first.size - 10, 0]
    assert database.query(spent) == [(LEFT, first.size - 10), (RIGHT, 0)]


def row(ledger: AuthorityLedger, seq: int, **others: Any) -> Entry:
    """A region's row of the current month."""
    entry = Entry(
        seq=seq,
        id=f"r{seq}",
        ts=datetime.now(UTC),
        account=TEAM,
        period=ledger.balance(ROOT).period.name,
        provider="openrouter",
        model="large",
        tokens_in=1,
        tokens_out=1,
        cost=Nano(10),
        held=Nano(10),
        task_id=None,
        agent=None,
        status="ok",
        outcome=Outcome.METERED,
    )
    return replace(entry, **others)


UNSOUND = {
    "more than the ledger counts": ({"cost": 2**62}, "cost must be"),
    "more than the month counts": ({"cost": 2**62 - 1}, "beyond what the ledger counts"),
    "money given": ({"cost": -1}, "cost must be"),
    "a negative hold": ({"held": -1}, "held must be"),
    "negative tokens": ({"tokens_out": -1}, "tokens_out must be"),
    "an account of nobody": ({"account": "llm/none"}, "no account llm/none"),
    "a month of long ago": ({"period": "0007-01"}, "'0007-01'"),
    "a month to come": ({"period": "9999-12"}, "'9999-12'"),
    "no month": ({"period": "2026-13"}, "'2026-13'"),
    "a call under way": ({"id": "open"}, "under way"),
    "a call that is booked": ({"id": "done"}, "booked already"),
    "a dearer call of others": ({"id": "done", "cost": 99, "account": LEFT}, "booked already"),
}


@pytest.mark.parametrize("unsound", UNSOUND)
async def test_a_row_that_no_call_can_have_left_is_passed_over(
    database, ledger, caplog, unsound
) -> None:
    others, why = UNSOUND[unsound]
    await tree(ledger, LEFT, 1)
    await ledger.hold(ask("open", 10, TEAM))
    await ledger.hold(ask("done", 10, TEAM))
    await ledger.settle("done", Settlement(cost=Nano(10)))
    await ledger.grant(US, TEAM, 10, 10)
    rows = [row(ledger, 1), row(ledger, 2, **others), row(ledger, 3)]
    with caplog.at_level(logging.ERROR):
        # Others' calls in the same transaction are not refused with it.
        answer, _ = await asyncio.gather(
            ledger.hear(US, Told(0, rows, {})), ledger.hold(ask("same", 10, TEAM))
        )
    assert answer.shipped_seq == 3
    assert ledger.balance(ROOT).spent == 30
    assert database.query("SELECT id FROM entries ORDER BY seq") == [("done",), ("r1",), ("r3",)]
    (alarm,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert alarm.fields["region"] == "us"
    assert alarm.fields["id"] == rows[1].id
    assert why in alarm.fields["why"]
    for id in ("open", "same"):
        await ledger.release(id)


async def test_what_is_told_twice_in_one_message_is_booked_once(database, ledger) -> None:
    await tree(ledger, LEFT, 1)
    await ledger.grant(US, TEAM, 10, 10)
    rows = [row(ledger, 1, id="a"), row(ledger, 2, id="a")]
    await ledger.hear(US, Told(0, rows, {}))
    assert ledger.balance(ROOT).spent == 10


async def test_a_dearer_row_of_the_region_itself_is_booked(database, ledger) -> None:
    await tree(ledger, LEFT, 1)
    await ledger.grant(US, TEAM, 10, 10)
    first = row(ledger, 1, id="a", outcome=Outcome.UNKNOWN)
    for rows in ([first], [replace(first, seq=2, cost=Nano(25), outcome=Outcome.METERED)]):
        await ledger.hear(US, Told(0, rows, {}))
    assert database.query("SELECT id, cost, outcome FROM entries") == [("a", 25, "metered")]
    assert ledger.balance(ROOT).spent == 25


async def test_a_row_beyond_its_slice_is_charged_in_full_and_sound(database, ledger) -> None:
    await tree(ledger, LEFT, 1)
    rows = [row(ledger, 1, outcome=Outcome.UNKNOWN), row(ledger, 2)]
    await ledger.hear(US, Told(0, rows, {}))
    assert ledger.balance(ROOT).spent == 20
    assert database.query("SELECT spent, overage FROM account_periods") == [(0, 20)] * 3


async def test_a_row_of_long_ago_is_booked_where_a_slice_was_granted_then(
    tmp_path, database
) -> None:
    now = datetime.now(UTC)
    ledger = AuthorityLedger(database.file, ROOT, lambda _: now)
    try:
        await tree(ledger, LEFT, 1)
        granted = await ledger.grant(US, TEAM, 10, 10)
        late = row(ledger, 1), row(ledger, 2, account=LEFT)
        now = now.replace(year=now.year + 1)
        await ledger.tick()
        assert ledger.balance(ROOT).period.name == months_before(granted.period, -12)
        await ledger.hear(US, Told(0, late, {}))
        assert database.query("SELECT id, period FROM entries") == [("r1", granted.period)]
    finally:
        await ledger.close()
