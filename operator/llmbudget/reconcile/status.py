"""The status of budgets and providers: pure, from what is known at one instant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final, Literal

from llmbudget.api.budget_status import BudgetStatus, FiredThreshold, Period, Phase
from llmbudget.api.conditions import Condition, ConditionType, Reason, merge_conditions
from llmbudget.api.meta import API_VERSION
from llmbudget.api.money import format_usd
from llmbudget.api.provider import ProviderStatus
from llmbudget.contract.config import GatewayConfig
from llmbudget.contract.events import ActionEvent, BalanceEvent
from llmbudget.decide.catalogue import Catalogue, catalogues
from llmbudget.decide.prices import prices_of
from llmbudget.decide.validity.chain import about
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.world import Budget, Provider, World
from llmbudget.reconcile.streams import GatewayState
from llmbudget.reconcile.targets import TargetReport

Manifest = dict[str, Any]
Truth = Literal["True", "False", "Unknown"]
Problem = tuple[Reason, str]
"""A reason, and what to do."""

_MOST_FIRED: Final = 16
"""Thresholds that a status can tell of: they may have been changed many times in a month."""
_ADMITTING: Final = "Calls are admitted against the budget."
_NOBODY: Final = (
    "No call is admitted, since nobody is a consumer: name ServiceAccounts in spec.consumers."
)
_FIGURES: Final = (
    *("period", "cap", "spent", "held", "remaining", "spentPercentage"),
    *("lent", "borrowed", "toppedUp", "rolledOver"),
    *("activeModel", "downgradeLevel", "thresholds"),
)
"""Fields that the gateway's ledger gives."""


@dataclass(frozen=True)
class Situation:
    """A root budget as reconciled last, and what its gateway says now."""

    world: World
    found: tuple[Finding, ...]
    config: GatewayConfig | None
    """As rendered; None: a fatal finding prevents it."""
    gateway: GatewayState

    @cached_property
    def catalogues(self) -> Mapping[str, Catalogue]:
        """What each account of the configuration may call, by its name."""
        return {} if self.config is None else catalogues(self.config)

    @cached_property
    def crossed(self) -> Mapping[tuple[str, str], Sequence[ActionEvent]]:
        """Crossed thresholds by account and period: a tree may have thousands."""
        found: dict[tuple[str, str], list[ActionEvent]] = defaultdict(list)
        for action in self.gateway.actions.values():
            found[action.account, action.period].append(action)
        return found


def budget_status(
    situation: Situation,
    budget: Budget,
    targets: TargetReport,
    before: Mapping[str, Any],
    timestamp: str,
) -> Manifest:
    """Write the status of one budget of a tree. Figures stay while the gateway is silent."""
    gateway = situation.gateway
    balance = gateway.balances.get(budget.account)
    conditions = _conditions(situation, budget, balance, targets)
    status = BudgetStatus(
        observed_generation=budget.generation,
        phase=_phase(situation, conditions, balance),
        config_generation=situation.config.generation if situation.config else None,
        changed_targets=targets.changed,
        conditions=merge_conditions(_before(before), conditions, timestamp),
    )
    document = _dump(status)
    if balance is None:
        return document | {key: before[key] for key in _FIGURES if key in before}
    figures = BudgetStatus(
        period=Period(name=balance.period, start=balance.period_start, end=balance.period_end),
        cap=_amount(balance.cap_nano),
        spent=_amount(balance.spent_nano),
        held=_amount(balance.held_nano),
        lent=_amount(balance.lent_nano or None),
        borrowed=_amount(balance.borrowed_nano or None),
        topped_up=_amount(balance.topped_up_nano or None),
        rolled_over=_amount(balance.rolled_over_nano or None),
        remaining=_remaining(balance),
        spent_percentage=_percentage(balance),
        active_model=active_model(situation, budget.account),
        downgrade_level=balance.level,
        thresholds=_fired(situation.crossed.get((budget.account, balance.period), ())),
    )
    return document | _dump(figures, exclude={"conditions", "changed_targets"})


def rejected_status(
    budget_generation: int, reason: Reason, message: str, before: Mapping[str, Any], timestamp: str
) -> Manifest:
    """Write the status of a budget that belongs to no tree, or can't be read."""
    conditions = [
        _condition(ConditionType.READY, "False", reason, message, budget_generation),
        _condition(ConditionType.STALLED, "True", reason, message, budget_generation),
    ]
    status = BudgetStatus(
        observed_generation=budget_generation,
        phase=Phase.FAILED,
        conditions=merge_conditions(_before(before), conditions, timestamp),
    )
    return _dump(status)


def provider_problem(
    provider: Provider, found: Sequence[Finding], missing_keys: Mapping[str, str]
) -> Problem | None:
    """Find what is wrong with a provider in the eyes of one root budget, and of its gateway."""
    for finding in found:
        if finding.provider == provider.name:
            return finding.reason, finding.message
    if provider.name in missing_keys:
        return Reason.SECRET_NOT_FOUND, _no_key(provider.name, missing_keys)
    return None


def provider_status(
    provider: Provider,
    problem: Problem | None,
    now: datetime,
    before: Mapping[str, Any],
    timestamp: str,
) -> Manifest:
    """Write the status of a provider that a budget uses."""
    generation = provider.generation
    conditions = [_condition(ConditionType.READY, "True", Reason.RECONCILED, "", generation)]
    if problem is not None:
        conditions = [
            _condition(ConditionType.READY, "False", *problem, generation),
            _condition(ConditionType.STALLED, "True", *problem, generation),
        ]
    priced = [prices for prices in prices_of(provider, now) if prices is not None]
    status = ProviderStatus(
        observed_generation=generation,
        models=len(priced),
        conditions=merge_conditions(_before(before), conditions, timestamp),
    )
    return status.model_dump(mode="json", by_alias=True)


def status_manifest(kind: str, namespace: str, name: str, status: Manifest) -> Manifest:
    """Wrap a status for server-side apply."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"namespace": namespace, "name": name},
        "status": status,
    }


def lowering(situation: Situation, account: str) -> Callable[[str], str | None] | None:
    """Make the function that applies the ceilings of an account's path; None: the account is in
    no configuration."""
    catalogue = situation.catalogues.get(account)
    if catalogue is None:
        return None
    levels = {name: balance.level for name, balance in situation.gateway.balances.items()}
    return catalogue.lowering(levels)


def active_model(situation: Situation, account: str) -> str | None:
    """Tell where a call for the ladder's first model goes now."""
    lower = lowering(situation, account)
    if lower is None:
        return None
    ladder = situation.catalogues[account].ladders[-1]
    return lower(ladder[0]) if ladder else None


def _conditions(
    situation: Situation, budget: Budget, balance: BalanceEvent | None, targets: TargetReport
) -> list[Condition]:
    generation = budget.generation
    ledger = _ledger(situation)
    problem = _problem(situation, budget, targets.refused)
    waiting = _waiting(situation)
    found: list[Condition] = []
    if problem is not None:
        found.append(_condition(ConditionType.READY, "False", *problem, generation))
        found.append(_condition(ConditionType.STALLED, "True", *problem, generation))
    elif waiting is not None:
        found.append(_condition(ConditionType.READY, "False", *waiting, generation))
        found.append(_condition(ConditionType.RECONCILING, "True", *waiting, generation))
    else:
        anybody = any(each.spec.consumers for each in situation.world.budgets)
        message = _ADMITTING if anybody else _NOBODY
        found.append(
            _condition(ConditionType.READY, "True", Reason.RECONCILED, message, generation)
        )
    found.append(_condition(ConditionType.LEDGER_AVAILABLE, *ledger, generation))
    found.append(_condition(ConditionType.WITHIN_BUDGET, *_within(budget, balance), generation))
    found.append(
        _condition(
            ConditionType.DOWNGRADED, *_downgraded(situation, budget, balance, targets), generation
        )
    )
    return found


def _problem(
    situation: Situation, budget: Budget, refused: Sequence[str]
) -> tuple[Reason, str] | None:
    """Find what only people can mend."""
    found = about(budget, situation.world, situation.found)
    if found:
        return found[0].reason, " ".join(finding.message for finding in found)
    chosen = {ref.name for ref in budget.spec.providers or situation.world.root.spec.providers}
    missing = [name for name in situation.gateway.missing_keys if name in chosen]
    if missing:
        return Reason.SECRET_NOT_FOUND, " ".join(
            _no_key(name, situation.gateway.missing_keys) for name in missing
        )
    if refused:
        return Reason.TARGET_NOT_CONSENTING, " ".join(refused)
    return None


def _no_key(provider: str, missing: Mapping[str, str]) -> str:
    why = missing[provider] or "it does not say why"
    return f"The gateway has no key for provider {provider}: {why}."


def _waiting(situation: Situation) -> tuple[Reason, str] | None:
    """Find what only takes time."""
    gateway = situation.gateway
    if not gateway.connected:
        message = f"Waiting for the gateway: {gateway.problem}."
        return Reason.GATEWAY_UNREACHABLE, message
    if gateway.ledger_problem is not None:
        return Reason.LEDGER_UNAVAILABLE, f"Calls are refused: {gateway.ledger_problem}."
    if situation.config is None:
        message = f"The root budget {situation.world.root.account} can't be carried out: see there."
        return Reason.CONFIG_NOT_ACKNOWLEDGED, message
    rendered = situation.config.generation
    if gateway.config_generation is None or gateway.config_generation < rendered:
        message = f"The gateway has not taken configuration {rendered} over yet."
        return Reason.CONFIG_NOT_ACKNOWLEDGED, message
    return None


def _ledger(situation: Situation) -> tuple[Truth, Reason, str]:
    gateway = situation.gateway
    if not gateway.connected:
        return "Unknown", Reason.GATEWAY_UNREACHABLE, gateway.problem
    if gateway.ledger_problem is not None:
        return "False", Reason.LEDGER_UNAVAILABLE, gateway.ledger_problem
    return "True", Reason.LEDGER_CONNECTED, ""


def _within(budget: Budget, balance: BalanceEvent | None) -> tuple[Truth, Reason, str]:
    if balance is None:
        return "Unknown", Reason.GATEWAY_UNREACHABLE, "No balance is known yet."
    if balance.awaiting_approval:
        message = (
            f"Calls are stopped until someone with the verb approve annotates this budget"
            f" llmbudget.io/approved-period={balance.period}."
        )
        return "False", Reason.AWAITING_APPROVAL, message
    if _exceeded(balance):
        message = f"The cap of {format_usd(balance.cap_nano or 0)} USD is reached."
        message += f" The next period begins at {balance.period_end}."
        return "False", Reason.CAP_REACHED, message
    return "True", Reason.UNDER_CAP, ""


def _downgraded(
    situation: Situation, budget: Budget, balance: BalanceEvent | None, targets: TargetReport
) -> tuple[Truth, Reason, str]:
    if balance is None:
        return "Unknown", Reason.GATEWAY_UNREACHABLE, "No balance is known yet."
    if balance.level == 0:
        return "False", Reason.NO_DOWNGRADE, ""
    model = active_model(situation, budget.account)
    said = f"No call goes to a dearer model than {model}." if model else "No model is left to call."
    message = " ".join([said, *targets.unmatched])
    return "True", Reason.THRESHOLD_CROSSED, message


def _phase(
    situation: Situation, conditions: Sequence[Condition], balance: BalanceEvent | None
) -> Phase:
    stalled = any(c.type == ConditionType.STALLED for c in conditions)
    serving = situation.gateway.connected and situation.config is not None
    if stalled and not serving:
        return Phase.FAILED
    if serving and situation.gateway.ledger_problem is not None:
        return Phase.FAILED
    if balance is None or not serving:
        return Phase.PENDING
    if balance.awaiting_approval:
        return Phase.AWAITING_APPROVAL
    if _exceeded(balance):
        return Phase.EXCEEDED
    if stalled:
        return Phase.FAILED
    return Phase.DOWNGRADED if balance.level else Phase.READY


def _exceeded(balance: BalanceEvent) -> bool:
    if balance.cap_nano is None or balance.spent_nano < balance.cap_nano:
        return False
    return not balance.remaining_nano  # Siblings may lend what is missing.


def _amount(nano: int | None) -> str | None:
    return None if nano is None else format_usd(nano)


def _remaining(balance: BalanceEvent) -> str | None:
    if balance.cap_nano is None:
        return None
    left = balance.remaining_nano
    if left is None:  # A gateway of an older version.
        left = max(0, balance.cap_nano - balance.spent_nano - balance.held_nano - balance.lent_nano)
    return format_usd(left)


def _percentage(balance: BalanceEvent) -> str | None:
    if balance.cap_nano is None:
        return None
    if balance.cap_nano == 0:
        return "100.0"
    most = 9_999_999_999  # a cap that was lowered to almost nothing
    whole, tenth = divmod(min(balance.spent_nano * 1000 // balance.cap_nano, most), 10)
    return f"{whole}.{tenth}"


def _fired(crossed: Sequence[ActionEvent]) -> list[FiredThreshold]:
    return [
        FiredThreshold(percentage=a.percentage, action=a.action, fired_at=a.fired_at)
        for a in sorted(crossed, key=lambda a: a.percentage)[-_MOST_FIRED:]
    ]


def _condition(
    kind: ConditionType, status: Truth, reason: Reason, message: str, generation: int
) -> Condition:
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message[:2048],
        observed_generation=generation,
    )


def _before(status: Mapping[str, Any]) -> list[Condition]:
    return [Condition.model_validate(condition) for condition in status.get("conditions") or ()]


def _dump(status: BudgetStatus, exclude: set[str] | None = None) -> Manifest:
    document: Manifest = status.model_dump(
        mode="json", by_alias=True, exclude_unset=True, exclude_none=True, exclude=exclude
    )
    return document
