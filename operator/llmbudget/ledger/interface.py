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
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.api.values import value
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


@value
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
    envelope: str | None = None
    """The one that the money is taken from; None: the account itself."""


@dataclass(frozen=True, slots=True)
class EnvelopeRequest:
    """Ask for money to be set aside for one task."""

    id: str
    """Unique, and nobody can guess it."""
    account: str
    amount: Nano
    consumer: str
    """ServiceAccount `namespace/name` that opens it."""
    users: tuple[str, ...]
    """ServiceAccounts `namespace/name` that may spend from it."""
    lifetime: timedelta
    """It ends after this, and with its month at the latest."""
    most_amount: Nano
    """What the open ones of this consumer may hold together."""
    most_open: int
    task_id: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """Money that was set aside for one task, on the whole path of its budget."""

    id: str
    account: str
    path: tuple[str, ...]
    """Accounts, child to root, that the money is set aside on."""
    period: str
    cap: int
    consumer: str
    users: tuple[str, ...]
    task_id: str | None
    opened: datetime
    expires: datetime
    """At the latest when the month ends."""
    closed: datetime | None = None
    spent: int = 0
    """Charged, what providers charged beyond holds among it."""
    held: int = 0

    @property
    def left(self) -> int:
        """What a call may still hold."""
        return 0 if self.closed else max(0, self.cap - self.spent - self.held)

    @property
    def reserved(self) -> int:
        """What is set aside on its path: what is left and held; once it is closed, what is held."""
        return self.held if self.closed else max(self.held, self.cap - self.spent)


@value
class Hold:
    """Money that is reserved."""

    id: str
    account: str
    amount: Nano
    period: str
    remaining: Nano | None
    """What is left in the envelope, or else on the tightest account of the path, after this hold;
    None: no cap anywhere."""


@value
class Settlement:
    """What a call turned out to be. `cost` None: not known, charged at the hold."""

    cost: Nano | None
    tokens_in: int = 0
    tokens_out: int = 0
    status: Status = Status.OK


@value
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
    envelope: str | None = None
    """The one that it was paid from."""


@value
class Balance:
    """One account in the current period, as last committed."""

    account: str
    period: Period
    cap: Nano | None
    """With what the month before left and top-ups add."""
    spent: Nano
    held: Nano
    level: int
    awaiting_approval: bool
    remaining: Nano | None
    """What a call may still hold here, borrowed money included; None without a cap."""
    beside_holds: Nano | None
    """The same if all holds were let go."""
    lent: Nano
    """Set aside in envelopes, or lent to siblings."""
    borrowed: Nano
    topped_up: Nano
    """By how much top-ups raise the cap now."""
    rolled_over: Nano
    """What the month before left."""


class LedgerError(Exception):
    """Base of everything that a ledger refuses."""


class LedgerUnavailable(LedgerError):
    """Money can't be counted now: nothing may be granted."""


class OutOfReach(LedgerUnavailable):
    """What is left of a region's slices does not cover the call, and more can't be had now."""

    def __init__(self, region: str, why: str) -> None:
        super().__init__(
            f"region {region} has spent what it was given of the budget, and can't be given more:"
            f" {why}"
        )
        self.region = region


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


class UnknownEnvelope(LedgerError):
    """There is no envelope with this id for this consumer."""


class EnvelopeClosed(LedgerError):
    """The envelope was closed, has expired, or its budget was moved."""


class EnvelopeLimit(LedgerError):
    """The consumer has as much set aside, or as many envelopes open, as it may."""

    def __init__(self, account: str, message: str) -> None:
        super().__init__(f"{account}: {message}")
        self.account = account
        self.message = message


class EnvelopeExceeded(BudgetExceeded):
    """An envelope has no room; `account` is its id."""


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
            UnknownAccount, BudgetExceeded, AwaitingApproval, RepeatedCall, UnknownEnvelope,
            EnvelopeClosed, EnvelopeExceeded, LedgerUnavailable.
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

    async def open_envelope(self, request: EnvelopeRequest) -> Envelope:
        """Set money aside on the whole path, durably, or raise. Again with the same key: the one
        that it opened.

        Raises:
            UnknownAccount, BudgetExceeded, AwaitingApproval, RepeatedCall (the key was used for
            another request), EnvelopeLimit, LedgerUnavailable.
        """

    async def close_envelope(self, envelope_id: str, consumer: str) -> Envelope:
        """Give back what is left; what is held stays set aside until it is resolved. Again: the
        envelope as it stands.

        Raises:
            UnknownEnvelope: the consumer opened none with this id.
        """

    async def envelope(self, envelope_id: str) -> Envelope | None:
        """Find an envelope, open or closed."""

    def open_envelopes(self) -> int:
        """Count the open ones, from memory."""

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

    async def tick(self) -> None:
        """Return once all that was asked for before is committed, and the period is the clock's."""

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
