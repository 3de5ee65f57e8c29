"""The 371OS guide's Python interface: its names, its file, exact sums, several processes."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from llmbudget import BudgetExceededError, BudgetManager, LLMUsage, UsageLedger
from llmbudget.ledger.guide import usd_to_nano

GUIDES_ROW = {
    "provider": "openrouter",
    "model": "qwen2-72b",
    "tokens_in": 10,
    "tokens_out": 20,
    "cost": 5e-05,
    "task_id": None,
    "agent": "test_agent",
    "status": "ok",
}
GUIDES_PROPERTIES = set(GUIDES_ROW)


class Recorder:
    """Takes events as PostHog's client does."""

    def __init__(self):
        self.events = []

    def capture(self, event, *, properties):
        self.events.append((event, properties))


class Broken:
    def capture(self, event, *, properties):
        raise RuntimeError("PostHog is away")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "llm_usage.json"


def usage(cost=0.1, **others):
    return LLMUsage(**{**GUIDES_ROW, "cost": cost, **others})


def test_workflow_ends_in_a_hard_stop(file):
    ledger = UsageLedger(file)
    budget = BudgetManager(1.0, ledger)
    for n in range(10):
        assert budget.get_remaining_budget_percentage() == pytest.approx(1 - n / 10, abs=1e-12)
        budget.check_budget()
        ledger.record_usage(usage(0.1))
    assert ledger.get_total_cost_for_current_month() == 1.0, "ten dimes are exactly a dollar"
    assert budget.is_budget_exceeded()
    assert budget.get_remaining_budget_percentage() == 0.0
    with pytest.raises(BudgetExceededError, match=r"\$1\.0 has been"):
        budget.check_budget()


def test_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    budget = BudgetManager()
    assert budget.monthly_cap == 20.00
    assert budget.get_remaining_budget_percentage() == 1.0
    budget.ledger.record_usage(usage(20.00))
    assert budget.is_budget_exceeded()
    assert (tmp_path / "llm_usage.json").exists()
    assert BudgetManager(0.0).is_budget_exceeded()


def test_file_has_the_guides_fields_in_their_order(file):
    when = datetime(2025, 8, 11, 16, 36, 6, 967806)  # noqa: DTZ001
    UsageLedger(str(file)).record_usage(usage(5e-05, ts=when))
    (row,) = json.loads(file.read_text())
    assert list(row.items()) == [("ts", "2025-08-11T16:36:06.967806"), *GUIDES_ROW.items()]
    assert '"cost": 0.00005,' in file.read_text(), "an exact decimal"


def test_month_is_utc(file):
    ledger = UsageLedger(file)
    now = datetime.now(UTC)
    ledger.record_usage(usage(1.0, ts=now.astimezone(timezone(timedelta(hours=9)))))
    ledger.record_usage(usage(2.0, ts=now - timedelta(days=40)))
    assert ledger.get_total_cost_for_current_month() == 1.0
    assert json.loads(file.read_text())[0]["ts"] == now.replace(tzinfo=None).isoformat(
        timespec="microseconds"
    )


def test_existing_file_is_taken_over_once(file):
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [{"ts": now.isoformat(), **GUIDES_ROW} for _ in range(3)]
    file.write_text(json.dumps(rows))
    assert UsageLedger(file).get_total_cost_for_current_month() == 0.00015
    UsageLedger(file).record_usage(usage(1.0))
    assert UsageLedger(file).get_total_cost_for_current_month() == 1.00015
    assert [row["cost"] for row in json.loads(file.read_text())] == [5e-05, 5e-05, 5e-05, 1.0]


@pytest.mark.parametrize(
    "text",
    ["{", '{"a": 1}', "[1]", '[{"cost": 1}]', '[{"cost": NaN}]', '[{"cost": -1}]', "7", '"x"'],
)
def test_existing_file_that_is_none_is_not_forgotten(file, text):
    file.write_text(text)
    for call in (
        lambda ledger: ledger.record_usage(usage()),
        UsageLedger.get_total_cost_for_current_month,
    ):
        with pytest.raises(ValueError, match="mend the file"):
            call(UsageLedger(file))
    assert file.read_text() == text


def test_empty_file_counts_as_none(file):
    file.write_text("")
    assert UsageLedger(file).get_total_cost_for_current_month() == 0.0


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -float("inf"), -0.01, 1e300])
def test_costs_that_are_none(file, cost):
    with pytest.raises(ValueError, match="cost"):
        usage(cost)
    with pytest.raises(ValueError, match="USD"):
        UsageLedger(file).record_usage(LLMUsage.model_construct(**{**GUIDES_ROW, "cost": cost}))
    with pytest.raises(ValueError, match="USD"):
        BudgetManager(cost, UsageLedger(file))
    assert UsageLedger(file).get_total_cost_for_current_month() == 0.0


@pytest.mark.parametrize(
    ("amount", "nano"),
    [
        (0.1, 10**8),
        (0.1 + 0.2, 3 * 10**8),
        (5e-05, 50_000),
        (1e-9, 1),
        (1e-12, 1),
        (0.0, 0),
        (20, 20 * 10**9),
        (1e9, 10**18),
    ],
)
def test_floats_mean_their_shortest_decimal(amount, nano):
    assert usd_to_nano(amount) == nano


def test_posthog_gets_the_guides_event_and_its_failure_costs_nothing(file):
    client = Recorder()
    UsageLedger(file, client).record_usage(usage())
    ((event, properties),) = client.events
    assert event == "llm_usage"
    assert properties == {**GUIDES_ROW, "cost": 0.1}
    UsageLedger(file, Broken()).record_usage(usage())
    assert UsageLedger(file).get_total_cost_for_current_month() == 0.2


def test_several_processes_at_once_lose_nothing(file):
    program = (
        "import sys\n"
        "from llmbudget import LLMUsage, UsageLedger\n"
        "for n in range(25):\n"
        "    UsageLedger(sys.argv[1]).record_usage(LLMUsage(provider='p', model='m',"
        " tokens_in=1, tokens_out=1, cost=0.01, agent=f'{sys.argv[2]}-{n}'))\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program, str(file), str(n)]) for n in range(4)
    ]
    assert [child.wait() for child in children] == [0] * 4
    assert UsageLedger(file).get_total_cost_for_current_month() == 1.0
    assert len({row["agent"] for row in json.loads(file.read_text())}) == 100


def test_importing_the_package_is_light():
    program = "import sys, llmbudget; print(*sorted({'pydantic', 'apsw'} & sys.modules.keys()))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""
