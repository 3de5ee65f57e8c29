"""The rows as Python sees them."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from llmbudget.api.budget import OnExceeded
from llmbudget.api.values import value
from llmbudget.contract.config import AccountConfig, Threshold
from llmbudget.ledger.interface import ActionRow, Entry, Envelope, HoldRequest

LIMIT: Final = 2**62
"""No amount and no sum of an account reaches this: SQLite's integers end at 2**63."""


@dataclass(frozen=True, slots=True)
class TopUp:
    """Money that raises an account's cap in one period, until it expires."""

    id: str
    amount: int
    period: str
    expires: datetime


@dataclass(frozen=True, slots=True)
class Loan:
    """What an account had borrowed of its siblings, or lent to them, when it was configured anew,
    as far as it was not given back since.

    Whatever the new terms are, this stays until the period ends: else a lender could spend once
    more what a borrower has spent of it.
    """

    period: str
    parent: str
    """Whose children it was among."""
    borrowed: int
    lent: int


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
    rollover: int = 0
    """Most of what is unused that is carried into the next period."""
    borrows: int | None = None
    """Most that it borrows of its siblings; None: it neither borrows nor lends."""
    lends: int | None = None
    """Most that it lends; None: all that is idle."""
    top_ups: tuple[TopUp, ...] = ()
    loan: Loan | None = None
    """Of the period in which it was configured last."""

    def cohort(self, period: str) -> str | None:
        """Name the parent among whose children it borrows and lends in a period; None: it does
        neither."""
        if self.cap is None or (self.borrows is None and self.loan is None):
            return None
        loan = self.loan_in(period)
        return self._own_cohort if loan is None else loan.parent

    def loan_in(self, period: str) -> Loan | None:
        """Tell what it has or gave by former terms in a period."""
        return self.loan if self.loan is not None and self.loan.period == period else None

    @property
    def _own_cohort(self) -> str | None:
        return (self.parent or "") if self.active and self.borrows is not None else None

    def limits(self, period: str) -> tuple[int, int | None]:
        """Tell the most that it borrows and lends in a period: by its terms, and not less than it
        still has and gave from before they were made."""
        limit: int = 0
        lends: int | None = 0
        if self._own_cohort == self.cohort(period):
            limit, lends = self.borrows or 0, self.lends
        loan = self.loan_in(period)
        if loan is not None:
            limit = max(limit, loan.borrowed)
            lends = None if lends is None else max(lends, loan.lent)
        return limit, lends

    def topped_up(self, period: str, now: datetime) -> int:
        """Tell by how much top-ups raise the cap of a period now."""
        return sum(t.amount for t in self.top_ups if t.period == period and now < t.expires)

    @classmethod
    def configured(
        cls,
        config: AccountConfig,
        generation: int,
        top_ups: tuple[TopUp, ...] = (),
        loan: Loan | None = None,
    ) -> Account:
        """Take over what a configuration says.

        Raises:
            ValueError: an amount is out of range.
        """
        borrowing = config.borrowing
        lends = None if borrowing is None else borrowing.lending_limit_nano
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
            rollover=checked(config.rollover_nano, "rollover"),
            borrows=None if borrowing is None else checked(borrowing.limit_nano, "borrowing limit"),
            lends=None if lends is None else checked(lends, "lending limit"),
            top_ups=top_ups,
            loan=loan,
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
    """What could be spent when the period was closed: the cap with all that raised it, less what
    was lent to siblings or carried into the next."""
    lent: int = 0
    """Set aside in envelopes."""
    rolled: int = 0
    """Unused money of the period before."""
    granted: int = 0
    """In a region's own ledger: slices that it was given, in total."""
    returned: int = 0
    """In a region's own ledger: what of them it gave back, in total."""

    @property
    def total(self) -> int:
        """Everything that counts as spent."""
        return self.spent + self.overage + self.debit

    @property
    def used(self) -> int:
        """Everything that leaves less for others."""
        return self.spent + self.overage + self.debit + self.held + self.lent

    @property
    def due(self) -> int:
        """How much of a closed period's overage and debit is beyond its cap and not carried yet."""
        if self.closing_cap is None:
            return 0
        beyond = min(self.overage + self.debit, max(0, self.total - self.closing_cap))
        return max(0, beyond - self.carried)


@value
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
    envelope: str | None = None
    """The one that it takes its money from: its path's money is set aside there."""


@value
class EntryRow:
    """An entry and the accounts that it was charged to."""

    entry: Entry
    path: tuple[str, ...]


class TransferKind(StrEnum):
    """Why an account may spend more or less in a period than its cap says."""

    TOP_UP = "top-up"
    ROLLOVER = "rollover"
    DEBIT = "debit"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Money that came to an account in a period, or, as a debit, was taken from it."""

    id: str
    ts: datetime
    kind: TransferKind
    account: str
    period: str
    amount: int
    source: str | None = None
    """The period that it comes from."""
    by: str | None = None
    """Who granted a top-up."""
    reason: str | None = None
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A region's own ledger, as the authority knows it."""

    id: str
    """Of its database's tables: tables that are made anew are another holder."""
    region: str
    shipped_seq: int = 0
    """Its rows up to this one are booked."""
    beats: int = 0
    """How often it was heard of."""
    lost: bool = False
    """It was silent for so long that what it held was charged."""
    replaced: bool = False
    """Tables were made in place of its own: it is given nothing more."""
    went_back: bool = False
    """Its database came from a backup: it is neither heard nor given anything more."""
    shipped_id: str | None = None
    """Of the last row that was booked; None: it is not known."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What one holder was given of an account in a period, as the authority knows it. Totals that
    only grow: whatever is told late, twice or out of order changes nothing."""

    holder: str
    account: str
    period: str
    path: tuple[str, ...]
    """Accounts, child to root, that it is set aside on."""
    granted: int = 0
    shipped: int = 0
    """Charged by rows, within their holds."""
    returned: int = 0
    unknown: int = 0
    """Charged since nobody knows better; rows that come late are taken from it."""

    @property
    def outstanding(self) -> int:
        """What is held on its path."""
        return self.granted - self.shipped - self.returned - self.unknown


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
    incarnation: str = ""
    """Of the tables: those that are made anew have another."""


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
    """Keys of periods before this one are forgotten."""
    forgotten: list[int] = field(default_factory=list)
    """Numbers of entries that are old enough to go; the months' sums stay."""
    envelopes: dict[str, Envelope] = field(default_factory=dict)
    transfers: dict[str, Transfer] = field(default_factory=dict)
    holders: dict[str, Holder] = field(default_factory=dict)
    slices: dict[tuple[str, str, str], Slice] = field(default_factory=dict)
    """By holder, account and period."""
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


def top_ups_text(top_ups: tuple[TopUp, ...]) -> str:
    """Write an account's top-ups as an engine stores them."""
    return json.dumps([[t.id, t.amount, t.period, t.expires.isoformat()] for t in top_ups])


def top_ups_of(text: str) -> tuple[TopUp, ...]:
    """Read what `top_ups_text` wrote."""
    return tuple(
        TopUp(id, amount, period, datetime.fromisoformat(expires))
        for id, amount, period, expires in json.loads(text)
    )


def loan_text(loan: Loan | None) -> str | None:
    """Write an account's loan as an engine stores it."""
    return None if loan is None else json.dumps(astuple(loan))


def loan_of(text: str | None) -> Loan | None:
    """Read what `loan_text` wrote."""
    return None if text is None else Loan(*json.loads(text))
