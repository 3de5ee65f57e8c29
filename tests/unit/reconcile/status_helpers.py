"""Trees with what their gateway says, for the tests of reconcile/status.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.worlds import read, world_of

from llmbudget.contract.events import BalanceEvent
from llmbudget.decide.validity.chain import findings
from llmbudget.reconcile.status import Manifest, Situation, budget_status
from llmbudget.reconcile.streams import GatewayState
from llmbudget.reconcile.targets import TargetReport
from llmbudget.render.gateway_config import gateway_config

SCENARIOS = Path(__file__).parents[2] / "golden" / "scenarios"
ROOT, CHILD = "llm-platform/org", "llm-teams/agents"
USD = 10**9
EARLY, NOW = "2026-11-01T00:00:00Z", "2026-11-23T12:00:00Z"


def balance(account: str = ROOT, **changes: Any) -> BalanceEvent:
    """Of USD 500.00, 100.00 are spent and 1.50 held."""
    values: dict[str, Any] = {
        "account": account,
        "period": "2026-11",
        "period_start": "2026-11-01T00:00:00-04:00",
        "period_end": "2026-12-01T00:00:00-05:00",
        "cap_nano": 500 * USD,
        "spent_nano": 100 * USD,
        "held_nano": 3 * USD // 2,
        "lent_nano": 0,
        "level": 0,
        "awaiting_approval": False,
        "config_generation": 1,
        "seq": 7,
    }
    return BalanceEvent.model_validate(values | changes)


def situation(
    *balances: BalanceEvent,
    root: Mapping[str, Any] | None = None,
    child: Mapping[str, Any] | None = None,
    gateway: Mapping[str, Any] | None = None,
) -> Situation:
    """A root and a child; changes to their specs, and to what the gateway said."""
    documents = read(SCENARIOS / "platform.yaml", SCENARIOS / "tree.yaml")
    documents[-2]["spec"] |= root or {}
    documents[-1]["spec"] |= child or {}
    world = world_of(documents)
    found = findings(world)
    fatal = any(finding.fatal for finding in found)
    config = None if fatal else gateway_config(world, found)
    state: dict[str, Any] = {
        "asked": True,
        "connected": True,
        "problem": "",
        "config_generation": config.generation if config else 1,
        "balances": {one.account: one for one in balances},
    }
    return Situation(world, found, config, GatewayState(**(state | dict(gateway or {}))))


def status_of(
    where: Situation,
    account: str = ROOT,
    targets: TargetReport | None = None,
    before: Mapping[str, Any] | None = None,
) -> Manifest:
    budget = next(one for one in where.world.budgets if one.account == account)
    return budget_status(where, budget, targets or TargetReport(), before or {}, NOW)


def condition(status: Manifest, kind: str) -> tuple[str, str, str] | None:
    """Status, reason and message; None: there is no such condition."""
    found = [one for one in status["conditions"] if one["type"] == kind]
    return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else None
