"""The rows as Python sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from llmbudget.api.budget import OnExceeded
from llmbudget.contract.config import AccountConfig, Threshold
from llmbudget.ledger.interface import ActionRow, Entry, HoldRequest

LIMIT: Final = 2**62
"""No amount and no sum of an account reaches this: SQLite's integers end at 2**63."""


@dataclass(frozen=True, slots=True)
class Account:
    """What the ledger must know of a budget."""

    name: str
    parent: str | None
    cap: int | None
    blocks: bool
    """Whether free calls stop too when the cap is reached."""
    thresholds: tuple[Threshold, ...]
    steps: int
    """Length of the ladder."""
    approved_period: str | None
    active: bool
    """Whether it is configured now: others keep their history and grant nothing."""
    revision: int
    """Generation of the configuration that it comes from."""

    @classmethod
    def configured(cls, config: AccountConfig, generation: int) -> Account:
        """Take over what a configuration says.

        Raises:
            ValueError: the cap is out of range.
        """
        return cls(
            name=config.name,
            parent=config.parent,
            cap=None if config.cap_nano is None else checked(config.cap_nano, "cap"),
            blocks=config.on_exceeded is OnExceeded.BLOCK,
            thresholds=config.thresholds,
            steps=len(config.ladder),
            approved_period=config.approved_period,
            active=True,
            revision=generation,
        )


@dataclass(slots=True)
class Figures:
    """One account in one period, in nano-USD."""

    spent: int = 0
    """Charged within holds."""
    overage: int = 0
    """Charged beyond holds."""
    debit: int = 0
    """What earlier periods left."""
    held: int = 0
    carried: int = 0
    """How much of the overage and the debit was posted to a later period as its debit."""
    closed: bool = False
    closing_cap: int | None = None
    """The cap when the period was closed."""

    @property
    def total(self) -> int:
        """Everything that counts as spent."""
        return self.spent + self.overage + self.debit

    @property
    def due(self) -> int:
        """How much of a closed period's overage and debit is beyond its cap and not carried yet."""
        if self.closing_cap is None:
            return 0
        beyond = min(self.overage + self.debit, max(0, self.total - self.closing_cap))
        return max(0, beyond - self.carried)


@dataclass(frozen=True, slots=True)
class OpenHold:
    """A hold that is neither settled nor released."""

    id: str
    path: tuple[str, ...]
    """Accounts, child to root, as they were when it was taken."""
    period: str
    amount: int
    provider: str
    model: str
    agent: str | None
    task_id: str | None
    epoch: int
    consumer: str | None
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class EntryRow:
    """An entry and the accounts that it was charged to."""

    entry: Entry
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A used idempotency key."""

    consumer: str
    key: str
    entry: str
    fingerprint: str | None
    period: str

    @classmethod
    def of(cls, request: HoldRequest, period: str) -> KeyRow | None:
        """Make the row of a request; None where it has no key."""
        if request.idempotency_key is None:
            return None
        return cls(
            request.consumer or "", request.idempotency_key, request.id, request.fingerprint, period
        )


@dataclass(slots=True)
class Header:
    """The ledger itself."""

    epoch: int
    generation: int
    period: str | None
    """Name of the current period; None before the first configuration."""
    time_zone: str
    """In force until the period ends."""
    next_time_zone: str
    """In force from the next period."""


@dataclass(slots=True)
class Changes:
    """What one transaction writes."""

    header: bool = False
    accounts: dict[str, Account] = field(default_factory=dict)
    figures: dict[tuple[str, str], Figures] = field(default_factory=dict)
    opened: dict[str, OpenHold] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    entries: dict[str, EntryRow] = field(default_factory=dict)
    corrected: dict[str, EntryRow] = field(default_factory=dict)
    """Entries of an unknown outcome whose late settle made them dearer."""
    keys: dict[tuple[str, str], KeyRow] = field(default_factory=dict)
    freed: list[tuple[str, str]] = field(default_factory=list)
    keys_before: str | None = None
    forgotten: list[int] = field(default_factory=list)
    """Numbers of entries that are old enough to go; the months' sums stay."""
    """Keys of periods before this one are forgotten."""
    actions: dict[str, ActionRow] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)


def checked(amount: int, what: str) -> int:
    """Let an amount or a count through that the ledger can hold.

    Raises:
        ValueError: it is negative, too large or no integer.
    """
    if type(amount) is not int or not 0 <= amount < LIMIT:
        raise ValueError(f"{what} must be an integer from 0 to below 2**62")
    return amount
