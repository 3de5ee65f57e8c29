"""What a ledger is, whatever its engine.

A *hold* reserves an upper bound of a call's cost on the whole path of accounts, child to root, in
one transaction. It is resolved once: *settled* (charged) or *released* (charged nothing). Each
step is idempotent by the hold's id. A hold whose outcome nobody knows is charged in full.

For every account of the path, within the hold's transaction and the ledger's period:

    spent + overage + debit + held + lent + new <= cap + borrowed + top-ups

`spent` below includes overage (what a provider charged beyond a hold) and debit (the part of the
last period's overage that exceeded its cap). Amounts are integer nano-USD.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.contract.events import LedgerEvent
from llmbudget.decide.periods import Period


class Status(StrEnum):
    """Status of a call in the 371OS guide's terms."""

    OK = "ok"
    FALLBACK = "fallback"
    ERROR = "error"


class Outcome(StrEnum):
    """How an entry's cost is known."""

    METERED = "metered"
    """From the provider's own usage figures."""
    UNKNOWN = "unknown"
    """Not known: charged at the hold."""
    RELEASED = "released"
    """The provider certainly charged nothing."""


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """Ask for money before a call leaves."""

    id: str
    """Entry id, unique, made by the caller of the ledger."""
    account: str
    amount: Nano
    """Upper bound of the call's cost."""
    provider: str
    model: str
    agent: str | None = None
    task_id: str | None = None
    consumer: str | None = None
    """ServiceAccount `namespace/name`: the scope of `idempotency_key`."""
    idempotency_key: str | None = None
    fingerprint: str | None = None
    """Hash of the request, to tell a repetition from a reuse of the key."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Money that is reserved."""

    id: str
    account: str
    amount: Nano
    period: str
    remaining: Nano | None
    """What is left on the tightest account of the path after this hold; None: no cap anywhere."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a call turned out to be. `cost` None: not known, charged at the hold."""

    cost: Nano | None
    tokens_in: int = 0
    tokens_out: int = 0
    status: Status = Status.OK


@dataclass(frozen=True, slots=True)
class Entry:
    """One terminal row: exactly one for every attempt that a provider may have accepted."""

    seq: int
    id: str
    ts: datetime
    """When it was settled, UTC."""
    account: str
    period: str
    provider: str
    model: str
    tokens_in: int
    tokens_out: int
    cost: Nano
    held: Nano
    task_id: str | None
    agent: str | None
    status: str | None
    """A `Status`, or whatever the 371OS guide's interface was given."""
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Balance:
    """One account in the current period, as last committed."""

    account: str
    period: Period
    cap: Nano | None
    spent: Nano
    held: Nano
    level: int
    awaiting_approval: bool

    @property
    def remaining(self) -> Nano | None:
        """Cap less spent and held, not below 0; None without a cap."""
        return None if self.cap is None else Nano(max(0, self.cap - self.spent - self.held))


class LedgerError(Exception):
    """Base of everything that a ledger refuses."""


class LedgerUnavailable(LedgerError):
    """Money can't be counted now: nothing may be granted."""


class UnknownAccount(LedgerError):
    """The account is not configured."""


class UnknownHold(LedgerError):
    """No hold and no entry has this id."""


class BudgetExceeded(LedgerError):
    """An account of the path has no room."""

    def __init__(
        self, account: str, *, asked: Nano, left: Nano, cap: Nano, period: Period, only_held: bool
    ) -> None:
        super().__init__(f"{account}: asked {asked}, left {left} of {cap} nano-USD")
        self.account = account
        self.asked = asked
        self.left = left
        """Cap less spent, less held, not below 0."""
        self.cap = cap
        self.period = period
        self.only_held = only_held
        """Whether there is room beside what is spent: only holds are in the way; waiting helps."""


class AwaitingApproval(LedgerError):
    """An executive intervention stops the account until its period is approved."""

    def __init__(self, account: str, period: Period) -> None:
        super().__init__(f"{account}: calls stopped until period {period.name} is approved")
        self.account = account
        self.period = period


class RepeatedCall(LedgerError):
    """The idempotency key was used before by this consumer."""

    def __init__(self, entry_id: str, cost: Nano | None, *, same_request: bool) -> None:
        super().__init__(f"idempotency key already used by {entry_id}")
        self.entry_id = entry_id
        self.cost = cost
        """None while the first call is under way."""
        self.same_request = same_request


@dataclass(frozen=True, slots=True)
class ActionRow:
    """A crossed threshold, written in the transaction that crossed it."""

    id: str
    account: str
    period: str
    percentage: int
    action: Action
    spent: Nano
    cap: Nano
    fired_at: datetime
    acknowledged: bool


class Ledger(Protocol):
    """The interface of an engine. Every method may raise LedgerUnavailable."""

    @property
    def problem(self) -> str | None:
        """Why money can't be counted now, as far as is known; None: it can."""

    async def configure(
        self, accounts: Sequence[AccountConfig], *, time_zone: str, generation: int
    ) -> None:
        """Take over caps, thresholds and the tree. A lower generation than the ledger's is
        ignored, so that a stale gateway can't raise a cap. Accounts that are left out keep their
        history and grant nothing."""

    async def hold(self, request: HoldRequest) -> Hold:
        """Reserve money on the whole path, durably, or raise.

        Raises:
            UnknownAccount, BudgetExceeded, AwaitingApproval, RepeatedCall, LedgerUnavailable.
        """

    async def settle(self, hold_id: str, settlement: Settlement) -> Entry:
        """Charge a hold, once. Again: the entry as it stands. A cost above the hold is overage.

        Raises:
            UnknownHold, LedgerUnavailable.
        """

    async def release(self, hold_id: str, status: Status = Status.ERROR) -> Entry:
        """Give a hold back: the provider certainly charged nothing. An entry with cost 0 stays.

        Raises:
            UnknownHold, LedgerUnavailable.
        """

    async def entry(self, entry_id: str) -> Entry | None:
        """Find a terminal row by its id; None while the call is under way or unknown."""

    async def entries(self, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """Read rows in the order of their `seq`, from the first one above `after`."""

    async def leads(self) -> bool:
        """Tell whether it is this owner that does what only one should do: the longest-living one.
        Two may believe it for a moment."""

    async def cursor(self, name: str) -> int:
        """Read how far a consumer of the rows (such as the PostHog sender) has come."""

    async def advance(self, name: str, seq: int) -> None:
        """Store how far a consumer of the rows has come."""

    async def forget(self, before: str, limit: int) -> int:
        """Drop rows of periods before `before`, at most `limit` of them; the months' sums stay.

        Returns:
            How many rows went.
        """

    def balance(self, account: str) -> Balance:
        """Tell where an account stands, from memory, as last committed.

        Raises:
            UnknownAccount.
        """

    def balances(self) -> Mapping[str, Balance]:
        """Tell where all accounts stand, from memory."""

    def subscribe(self) -> AsyncIterator[LedgerEvent]:
        """Follow the accounts: a snapshot (all balances, then the period's actions and all
        unacknowledged ones), then each change. A slow reader gets the latest state of an account,
        not every step, but every action."""

    async def acknowledge(self, action_id: str) -> None:
        """Mark an action as done; unknown ids are ignored."""

    async def close(self) -> None:
        """Commit what is queued and let go of the file or the connections."""
