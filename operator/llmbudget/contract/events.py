"""The ledger's event stream: `GET /ledger/v1/balances`, server-sent events.

A snapshot of every account first, then `event: snapshot`, then changes. `id:` is the sequence
number; a client that reconnects with `Last-Event-ID` gets a fresh snapshot all the same, since a
balance is a state and not a difference. A comment line every few seconds is the heartbeat. Amounts
are strings: they may exceed what JSON numbers carry exactly.

Acknowledge an action with `POST /ledger/v1/actions/{id}/ack`: until then it is sent again in every
snapshot, and the action is due at least once.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, PlainSerializer

from llmbudget.api.budget import Action
from llmbudget.contract.config import Wire

BALANCES_PATH: Final = "/ledger/v1/balances"
ACTIONS_PATH: Final = "/ledger/v1/actions"
CALLS_PATH: Final = "/ledger/v1/calls"
ENVELOPES_PATH: Final = "/ledger/v1/envelopes"
ENVELOPE_HEADER: Final = "x-llmbudget-envelope"
"""Names the envelope that a call is paid from."""
HEARTBEAT_SECONDS: Final = 5

Name = Annotated[str, Field(max_length=317)]
"""An account, the longest of all names that are told."""
StringInt = Annotated[int, BeforeValidator(int), PlainSerializer(str, return_type=str)]


class EventName(StrEnum):
    """Values of the `event:` field."""

    BALANCE = "balance"
    ACTION = "action"
    KEYS = "keys"
    LEDGER = "ledger"
    SNAPSHOT = "snapshot"


class BalanceEvent(Wire):
    """Where one account stands in the current period, in nano-USD."""

    account: Name
    period: Name
    period_start: Name
    period_end: Name
    """First instant of the next period, RFC 3339, in the root's time zone."""
    cap_nano: StringInt | None
    """With what the last period left and top-ups add."""
    spent_nano: StringInt
    """Spent, overage and what the last period left as debit."""
    held_nano: StringInt
    lent_nano: StringInt
    """Set aside in envelopes, or lent to siblings."""
    borrowed_nano: StringInt = 0
    topped_up_nano: StringInt = 0
    rolled_over_nano: StringInt = 0
    remaining_nano: StringInt | None = None
    """What a call may still hold here, borrowed money included; None without a cap."""
    level: int
    """Step of the ladder that is the ceiling; 0: none."""
    awaiting_approval: bool
    """An executive intervention was crossed and this period is not approved."""
    config_generation: int
    seq: int


class ActionEvent(Wire):
    """A threshold that was crossed: unique by account, period and percentage."""

    id: Name
    account: Name
    period: Name
    percentage: int
    action: Action
    spent_nano: StringInt
    cap_nano: StringInt
    fired_at: Name
    """RFC 3339, UTC."""
    acknowledged: bool
    seq: int


class SnapshotEvent(Wire):
    """The end of the snapshot: everything known has been said once."""

    seq: int


class KeysEvent(Wire):
    """Providers whose key the gateway lacks; empty: none."""

    missing: tuple[str, ...]
    reasons: Mapping[str, str] = Field(default_factory=dict)
    """Why, by provider."""


class AvailabilityEvent(Wire):
    """Whether the gateway can count money."""

    problem: str | None
    """Why it can't, for the people who run it; None: it can."""


LedgerEvent = BalanceEvent | ActionEvent | SnapshotEvent
"""What a ledger tells of itself."""
StreamEvent = LedgerEvent | KeysEvent | AvailabilityEvent
"""What a gateway sends."""
