"""`llmbudget ledger verify`: a sound ledger passes, and each thing that can be wrong is named."""

from datetime import UTC, datetime

import apsw
import pytest
from click.testing import CliRunner
from tests.unit.ledger.ledger_helpers import PostgresEngine, account, ask, task, within

from llmbudget.api.money import Nano
from llmbudget.cli.ledger import command
from llmbudget.contract.config import BorrowingConfig, TopUpConfig
from llmbudget.ledger.interface import Settlement

ROOT, TEAM = "llm/org", "llm/team"
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
LATER = datetime(2027, 6, 1, tzinfo=UTC)


@pytest.fixture
async def used(engine, clock):
    """A ledger in its second month that has some of everything."""
    launch = TopUpConfig(id="l", amount_nano=9, by="ada", reason="launch", expires=LATER)
    ledger = await engine.open()
    await ledger.configure(
        [account(ROOT, 300), account(TEAM, 100, ROOT, rollover_nano=30, top_ups=[launch])],
        time_zone="UTC",
        generation=1,
    )
    for id, held, cost in (("1", 20, 20), ("2", 30, 10), ("3", 10, 25), ("4", 5, None)):
        await ledger.hold(ask(id, held, TEAM, consumer="team/lead", idempotency_key=id))
        await ledger.settle(id, Settlement(None if cost is None else Nano(cost)))
    await ledger.hold(ask("r", 230))
    await ledger.settle("r", Settlement(Nano(330)))
    clock.now = DECEMBER
    await ledger.tick()
    await ledger.open_envelope(task("e", 40, TEAM, idempotency_key="k"))
    await ledger.hold(within("e", "5", 10, TEAM))
    await ledger.settle("5", Settlement(Nano(4)))
    await ledger.hold(within("e", "6", 10, TEAM))
    await ledger.hold(ask("7", 3, TEAM))
    await ledger.hold(ask("8", 3, TEAM))
    await ledger.release("8")
    yield ledger
    await ledger.close()


def tamper(engine, statement):
    if isinstance(engine, PostgresEngine):
        engine.query(statement)
        return
    connection = apsw.Connection(str(engine.file))
    try:
        connection.execute(statement)
    finally:
        connection.close()


async def test_a_sound_ledger(used, engine):
    report = engine.audited()
    assert report.findings == ()
    assert str(report) == ("7 rows, 2 accounts, 2 months, 2 holds under way, 1 envelopes open")


NOVEMBER = "period = '2026-11' AND account = 'llm/team'"
FAULTS = {
    "a sum that is too small": (
        f"UPDATE account_periods SET spent = spent - 1 WHERE {NOVEMBER}",
        ["llm/team in 2026-11: spent 0.000000044 USD, its rows 0.000000045 USD"],
    ),
    "overage that is not there": (
        f"UPDATE account_periods SET overage = overage + 3 WHERE {NOVEMBER}",
        ["llm/team in 2026-11: charged beyond holds 0.000000018 USD, its rows 0.000000015 USD"],
    ),
    "a row that is gone": (
        "DELETE FROM entries WHERE id = '2'",
        [
            "llm/org in 2026-11: spent 0.000000275 USD, its rows 0.000000265 USD",
            "llm/team in 2026-11: spent 0.000000045 USD, its rows 0.000000035 USD",
            "idempotency keys: belong to calls that left nothing: 2",
        ],
    ),
    "a row that was refunded": (
        "UPDATE entries SET cost = 4 WHERE id = '4'",
        [
            "llm/org in 2026-11: spent 0.000000275 USD, its rows 0.000000274 USD",
            "llm/team in 2026-11: spent 0.000000045 USD, its rows 0.000000044 USD",
            "rows: are not charged as their outcome says: 4",
        ],
    ),
    "a row of an unknown outcome that was charged beyond its hold": (
        "UPDATE entries SET cost = 6 WHERE id = '4'",
        [
            "llm/org in 2026-11: charged beyond holds 0.000000115 USD, its rows 0.000000116 USD",
            "llm/team in 2026-11: charged beyond holds 0.000000015 USD, its rows 0.000000016 USD",
            "rows: are not charged as their outcome says: 4",
        ],
    ),
    "a hold that is gone": (
        "DELETE FROM holds WHERE id = '7'",
        [
            "llm/org in 2026-12: held 0.000000003 USD, its holds 0.00 USD",
            "llm/team in 2026-12: held 0.000000003 USD, its holds 0.00 USD",
        ],
    ),
    "a hold of an envelope that is gone": (
        "DELETE FROM holds WHERE id = '6'",
        ["envelope e of llm/team: held 0.00000001 USD, its holds 0.00 USD"],
    ),
    "an envelope that has spent more": (
        "UPDATE envelopes SET spent = 5",
        [
            "llm/org in 2026-12: set aside 0.000000036 USD, its envelopes 0.000000035 USD",
            "llm/team in 2026-12: set aside 0.000000036 USD, its envelopes 0.000000035 USD",
            "envelope e of llm/team: spent 0.000000005 USD, its rows 0.000000004 USD",
        ],
    ),
    "an envelope that is gone": (
        "DELETE FROM envelopes",
        [
            "llm/org in 2026-12: set aside 0.000000036 USD, its envelopes 0.00 USD",
            "llm/team in 2026-12: set aside 0.000000036 USD, its envelopes 0.00 USD",
            "envelope e: calls were paid from it, and there is none",
            "envelope e: calls were paid from it, and there is none",
            "idempotency keys: belong to calls that left nothing: e",
        ],
    ),
    "a call under way that has a row": (
        "UPDATE holds SET id = '1' WHERE id = '7'",
        ["holds: have a row already: 1"],
    ),
    "money that came from nowhere": (
        "UPDATE account_periods SET rolled = rolled + 5 WHERE period = '2026-12' "
        "AND account = 'llm/team'",
        ["llm/team in 2026-12: rolled over 0.000000035 USD, its transfers 0.00000003 USD"],
    ),
    "a debit that went nowhere": (
        "DELETE FROM transfers WHERE kind = 'debit'",
        ["llm/org in 2026-12: debit 0.00000009 USD, its transfers 0.00 USD"],
    ),
    "a debit that was forgiven": (
        "UPDATE account_periods SET carried = 0 WHERE period = '2026-11' AND account = 'llm/org'",
        [
            "llm/org in 2026-11: 0.00000009 USD beyond its cap were not carried on",
            "llm/org: carried on 0.00 USD, debits 0.00000009 USD",
        ],
    ),
    "a month that was left open": (
        f"UPDATE account_periods SET closed = FALSE WHERE {NOVEMBER}",
        ["llm/team in 2026-11: is over, and was not closed"],
    ),
    "rows of a month to come": (
        "UPDATE ledger SET period = '2026-11'",
        [
            "llm/org in 2026-11: is closed, and the month goes on",
            "llm/team in 2026-11: is closed, and the month goes on",
            "llm/org in 2026-12: has sums, and the ledger's month is 2026-11",
            "llm/team in 2026-12: has sums, and the ledger's month is 2026-11",
            "entries of 2026-12: are later than the ledger's 2026-11",
            "holds of 2026-12: are later than the ledger's 2026-11",
            "envelopes of 2026-12: are later than the ledger's 2026-11",
            "transfers of 2026-12: are later than the ledger's 2026-11",
        ],
    ),
    "an account that was never there": (
        "DELETE FROM accounts WHERE name = 'llm/team'",
        ["rows of llm/team: are charged to what is no account: llm/team"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_wrong_is_named(used, engine, fault):
    statement, expected = FAULTS[fault]
    tamper(engine, statement)
    assert sorted(map(str, engine.audited().findings)) == sorted(expected)


async def test_siblings_that_spent_more_than_they_had_are_noted(engine, clock):
    """A cap that is lowered leaves the same rows as money that is lent twice."""
    ledger = await engine.open()
    terms = {"borrowing": BorrowingConfig(limit_nano=50)}
    for generation, cap in ((1, 100), (2, 10)):
        siblings = account("llm/a", 10, ROOT, **terms), account("llm/b", cap, ROOT, **terms)
        await ledger.configure(
            [account(ROOT, None), *siblings], time_zone="UTC", generation=generation
        )
        if generation == 1:
            await ledger.hold(ask("1", 60, "llm/a"))
            await ledger.settle("1", Settlement(Nano(60)))
    clock.now = DECEMBER
    await ledger.tick()
    await ledger.close()
    report = engine.audited()
    assert report.findings == ()
    assert [str(note) for note in report.notes] == [
        "children of llm/org in 2026-11: spent 0.00000004 USD beyond what they had in the end, "
        "and carried none of it on: right only where a cap was lowered or a top-up ended"
    ]
    kind = "--postgres" if isinstance(engine, PostgresEngine) else "--ledger"
    told = CliRunner().invoke(command, ["verify", kind, str(engine.file)])
    assert (told.exit_code, told.stdout) == (0, "")
    assert told.stderr.startswith("note: children of llm/org in 2026-11: spent 0.00000004 USD")


async def test_rows_that_were_dropped_leave_the_sums_of_their_month(used, engine):
    assert await used.forget("2026-12", 100) == 5
    assert engine.audited().findings == ()
    tamper(engine, f"UPDATE account_periods SET debit = 1 WHERE {NOVEMBER}")
    assert [finding.where for finding in engine.audited().findings] == [
        "llm/team in 2026-11",
        "llm/team",
    ]


async def test_the_command_says_where_and_ends_accordingly(used, engine, tmp_path):
    kind = "--postgres" if isinstance(engine, PostgresEngine) else "--ledger"
    arguments = ["verify", kind, str(engine.file)]
    sound = CliRunner().invoke(command, arguments)
    assert (sound.exit_code, sound.stdout) == (0, "")
    assert sound.stderr.startswith("the ledger is sound: 7 rows")
    tamper(engine, f"UPDATE account_periods SET spent = 0 WHERE {NOVEMBER}")
    wrong = CliRunner().invoke(command, arguments)
    assert wrong.exit_code == 1
    assert wrong.stdout == "llm/team in 2026-11: spent 0.00 USD, its rows 0.000000045 USD\n"
    assert wrong.stderr.startswith("1 findings: ")
    nothing = tmp_path / "nothing"
    nothing.write_text("")
    unread = CliRunner().invoke(command, ["verify", kind, str(nothing)])
    assert unread.exit_code == 2
    assert CliRunner().invoke(command, ["verify"]).exit_code == 2
