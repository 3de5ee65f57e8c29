"""Status conditions: their types, their reasons, and how a list of them is updated.

Compatible with kstatus (Argo CD, Flux): `Ready` is the summary, `Reconciling` and `Stalled` are
present and True only while they hold. A spent budget is still Ready=True: it does its work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from llmbudget.api.model import Model


class ConditionType(StrEnum):
    """All condition types of both resources."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    LEDGER_AVAILABLE = "LedgerAvailable"
    WITHIN_BUDGET = "WithinBudget"
    DOWNGRADED = "Downgraded"


class Reason(StrEnum):
    """All reasons; one word each, stable, so that alerts and scripts can match them."""

    RECONCILED = "Reconciled"
    PROGRESSING = "Progressing"
    INVALID_SPEC = "InvalidSpec"
    PROVIDER_NOT_FOUND = "ProviderNotFound"
    PROVIDER_INVALID = "ProviderInvalid"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105
    SECRET_NOT_CONSENTING = "SecretNotConsenting"  # noqa: S105
    LADDER_UNKNOWN_MODEL = "LadderUnknownModel"
    MODEL_UNPRICED = "ModelUnpriced"
    PARENT_NOT_FOUND = "ParentNotFound"
    PARENT_CYCLE = "ParentCycle"
    PARENT_TOO_DEEP = "ParentTooDeep"
    PARENT_REFUSES = "ParentRefuses"
    TREE_TOO_LARGE = "TreeTooLarge"
    CONSUMER_REFUSED = "ConsumerRefused"
    GATEWAY_NOT_READY = "GatewayNotReady"
    GATEWAY_UNREACHABLE = "GatewayUnreachable"
    CONFIG_NOT_ACKNOWLEDGED = "ConfigNotAcknowledged"
    LEDGER_UNAVAILABLE = "LedgerUnavailable"
    LEDGER_ENGINE_CHANGED = "LedgerEngineChanged"
    LEDGER_CONNECTED = "LedgerConnected"
    TARGET_NOT_CONSENTING = "TargetNotConsenting"
    NOT_SUPPORTED = "NotSupported"
    API_ERROR = "ApiError"
    NAME_TAKEN = "NameTaken"
    CERTIFICATE_MISSING = "CertificateMissing"
    UNDER_CAP = "UnderCap"
    CAP_REACHED = "CapReached"
    AWAITING_APPROVAL = "AwaitingApproval"
    NO_DOWNGRADE = "NoDowngrade"
    THRESHOLD_CROSSED = "ThresholdCrossed"


class Condition(Model):
    """One condition, as `metav1.Condition`."""

    type: Annotated[str, Field(max_length=64)]
    """What is being said."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=64)]
    """One word for scripts."""
    message: Annotated[str, Field(max_length=2048)] = ""
    """A sentence for people: what is wrong and what to do."""
    observed_generation: int = 0
    """Generation of the spec that this was said of."""
    last_transition_time: Annotated[str, Field(max_length=32)] = ""
    """When `status` last changed, RFC 3339."""


def merge_conditions(
    before: Iterable[Condition], now: Sequence[Condition], timestamp: str
) -> list[Condition]:
    """Carry transition times over: a condition keeps its time while its status stays.

    Conditions absent from `now` disappear; the order is that of `now`.
    """
    known = {condition.type: condition for condition in before}

    def carry(condition: Condition) -> Condition:
        old = known.get(condition.type)
        kept = old is not None and old.status == condition.status and old.last_transition_time
        return condition.model_copy(
            update={"last_transition_time": kept if kept else timestamp},
        )

    return [carry(condition) for condition in now]
