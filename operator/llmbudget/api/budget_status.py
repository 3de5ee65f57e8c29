"""Where an LLMBudget stands: its status, of which the operator writes all."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from llmbudget.api.budget import Action, Percentage
from llmbudget.api.conditions import Condition
from llmbudget.api.model import LabelName, Model, ModelName, ObjectName, keyed_by


class Phase(StrEnum):
    """The status in one word."""

    PENDING = "Pending"
    READY = "Ready"
    DOWNGRADED = "Downgraded"
    EXCEEDED = "Exceeded"
    AWAITING_APPROVAL = "AwaitingApproval"
    FAILED = "Failed"


class Period(Model):
    """The month that the figures are of, in the root's time zone."""

    name: Annotated[str, Field(max_length=16)]
    """Such as 2026-11."""
    start: Annotated[str, Field(max_length=40)]
    """First instant, RFC 3339."""
    end: Annotated[str, Field(max_length=40)]
    """First instant of the next period, RFC 3339."""


class FiredThreshold(Model):
    """A threshold that was crossed in this period."""

    percentage: Percentage
    """Percent of the cap."""
    action: Action
    """What was done."""
    fired_at: Annotated[str, Field(max_length=40)]
    """When the ledger recorded the crossing, RFC 3339."""


class ChangedTarget(Model):
    """A Deployment whose model variable holds our value now."""

    namespace: LabelName
    """Namespace of the Deployment."""
    name: ObjectName
    """Name of the Deployment."""
    model: ModelName
    """The value that was set."""


_AMOUNT = Annotated[str, Field(max_length=24)]


class BudgetStatus(Model):
    """Where the budget stands."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""
    phase: Phase | None = None
    """The status in one word."""
    config_generation: int | None = None
    """Generation of the gateway's configuration that was rendered last."""
    period: Period | None = None
    """The month that the figures are of."""
    cap: _AMOUNT | None = None
    """USD that may be spent in this period, with `rolledOver` and `toppedUp`; absent where only the
    ancestors' caps hold."""
    spent: _AMOUNT | None = None
    """USD spent."""
    held: _AMOUNT | None = None
    """USD reserved for calls under way."""
    lent: _AMOUNT | None = None
    """USD set aside in envelopes for tasks, or lent to siblings."""
    borrowed: _AMOUNT | None = None
    """USD of siblings that are spent, held or set aside here."""
    topped_up: _AMOUNT | None = None
    """USD that top-ups add to the cap now."""
    rolled_over: _AMOUNT | None = None
    """USD that the period before left."""
    remaining: _AMOUNT | None = None
    """USD that calls may still hold here, what siblings would lend among it, not below 0."""
    spent_percentage: Annotated[str, Field(max_length=16)] | None = None
    """Percent of the cap that is spent, rounded down to one decimal."""
    active_model: ModelName | None = None
    """Where a call for the ladder's first model goes now."""
    downgrade_level: Annotated[int, Field(ge=0)] | None = None
    """Step of the ladder that is the ceiling now; 0: none."""
    thresholds: Annotated[
        list[FiredThreshold],
        Field(max_length=16, json_schema_extra=keyed_by("percentage")),
    ] = []
    """Thresholds crossed in this period."""
    changed_targets: Annotated[list[ChangedTarget], Field(max_length=256)] = []
    """Deployments that are moved to a cheaper model now."""
    conditions: Annotated[
        list[Condition],
        Field(max_length=16, json_schema_extra=keyed_by("type")),
    ] = []
    """Ready, Reconciling, Stalled, LedgerAvailable, WithinBudget, Downgraded."""
