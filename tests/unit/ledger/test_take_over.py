"""What another system counted is charged once, exactly, and holds calls back."""

import gzip
import json
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ledger.ledger_helpers import account, ask

from llmbudget.api.budget import Action
from llmbudget.ledger.guide import read_usage_file
from llmbudget.ledger.interface import BudgetExceeded
from llmbudget.ledger.operations import Operations

ACCOUNT = "llm/org"
GUIDES_ROW = {
    "ts": "2026-11-11T16:36:06.967806",
    "provider": "openrouter",
    "model": "qwen2-72b",
    "tokens_in": 10,
    "tokens_out": 20,
    "cost": 5e-05,
    "task_id": None,
    "agent": "test_agent",
    "status": "ok",
}


def rows(*costs, **changes):
    return [GUIDES_ROW | {"cost": cost} | changes for cost in costs]


def written(path, content):
    path.write_text(json.dumps(content))
    return path


costs = st.floats(min_value=0, max_value=1e6, allow_nan=False)


@given(st.lists(st.one_of(costs, st.integers(0, 1000)), max_size=30))
def test_each_cost_is_the_decimal_that_was_written_rounded_up_once(tmp_path_factory, many):
    path = written(tmp_path_factory.mktemp("usage") / "llm_usage.json", rows(*many))
    read = [row.cost for row in read_usage_file(path, ACCOUNT)]
    nano = (Decimal(repr(cost)).scaleb(9) for cost in many)
    assert read == [int(exact.to_integral_value(ROUND_CEILING)) for exact in nano]


async def test_the_months_spend_counts_against_the_cap(ledger: Operations, tmp_path):
    this_month, last_month = rows(0.1, 0.2, 0.1), rows(7.0, ts="2026-10-31T23:59:59Z")
    path = written(tmp_path / "llm_usage.json", [*last_month, *this_month])
    drafts = list(read_usage_file(path, ACCOUNT))
    assert await ledger.take_over("llm_usage.json", ACCOUNT, drafts)
    assert not await ledger.take_over("llm_usage.json", ACCOUNT, drafts), "once"

    half = ((80, Action.DOWNGRADE_MODELS),)
    cap = 500_000_000
    await ledger.configure([account(cap=cap, thresholds=half)], time_zone="UTC", generation=1)
    balance = ledger.balance(ACCOUNT)
    assert (balance.spent, balance.remaining, balance.level) == (400_000_000, 100_000_000, 1)
    with pytest.raises(BudgetExceeded):
        await ledger.hold(ask("h1", 100_000_001))
    await ledger.hold(ask("h2", 100_000_000))
    entries = await ledger.entries()
    assert [entry.cost for entry in entries] == [7 * 10**9, 10**8, 2 * 10**8, 10**8]
    assert [entry.agent for entry in entries] == ["test_agent"] * 4


async def test_a_configured_account_crosses_its_thresholds_at_once(ledger: Operations, tmp_path):
    half = ((50, Action.DOWNGRADE_MODELS),)
    await ledger.configure([account(cap=10**9, thresholds=half)], time_zone="UTC", generation=1)
    path = written(tmp_path / "llm_usage.json", rows(0.6))
    await ledger.take_over("llm_usage.json", ACCOUNT, list(read_usage_file(path, ACCOUNT)))
    assert ledger.balance(ACCOUNT).level == 1


async def test_all_or_nothing(ledger: Operations, tmp_path):
    path = written(tmp_path / "llm_usage.json", rows(0.1, *[1e9] * 5))
    drafts = list(read_usage_file(path, ACCOUNT))
    with pytest.raises(ValueError, match="beyond what the ledger counts"):
        await ledger.take_over("llm_usage.json", ACCOUNT, drafts)
    assert await ledger.entries() == []
    assert await ledger.take_over("llm_usage.json", ACCOUNT, drafts[:1])


def test_months_turn_where_the_budget_is(tmp_path):
    path = written(tmp_path / "llm_usage.json", rows(0.1, ts="2026-11-01T03:00:00"))
    (row,) = read_usage_file(path, ACCOUNT, "America/New_York")
    assert (row.period, row.ts) == ("2026-10", datetime(2026, 11, 1, 3, tzinfo=UTC))


def test_a_packed_file(tmp_path):
    path = tmp_path / "llm_usage.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows(0.1)).encode()))
    assert [row.cost for row in read_usage_file(path, ACCOUNT)] == [100_000_000]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "JSONDecodeError"),
        ('{"a": 1}', "row 1"),
        (json.dumps([GUIDES_ROW, {"ts": "x"}]), "row 2: 'cost' is missing"),
        (json.dumps(rows(-1)), "row 1: .*is no amount in USD"),
        (json.dumps(rows("much")), "row 1"),
        (json.dumps(rows(0.1, tokens_in=-1)), "row 1: tokens_in"),
        (json.dumps(rows(0.1)).replace("0.1", "NaN"), "row 1: .*is no amount in USD"),
    ],
)
def test_a_file_that_is_none_says_which_row(tmp_path, content, why):
    path = tmp_path / "llm_usage.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=why):
        list(read_usage_file(path, ACCOUNT))
