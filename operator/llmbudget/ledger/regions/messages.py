"""What a region tells the authority, what it answers, and why either says no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmbudget.ledger.interface import (
    Entry,
    LedgerUnavailable,
)
from llmbudget.ledger.records import Slice


class LedgerWentBack(LedgerUnavailable):
    """A region's database knows less than it told before: it comes from a backup."""

    def __init__(self, region: str) -> None:
        super().__init__(
            f"the database of region {region} knows less than it has told the budget's ledger, as"
            " one that was restored from a backup does: drop its tables, and the gateways make them"
            " anew; what it had not shipped is charged as unknown"
        )


class TablesReplaced(LedgerUnavailable):
    """The tables that a gateway spent from are no longer its region's."""

    def __init__(self, region: str) -> None:
        super().__init__(
            f"the tables of region {region} were made anew: what the old ones held is charged as"
            " unknown, and nothing more is given for them. Where the region went back to a database"
            " that it had before, drop its tables there"
        )


@dataclass(frozen=True, slots=True)
class Granted:
    """What a region has been given of an account in a period, with all that it was given before."""

    account: str
    period: str
    total: int
    size: int
    """Of the last slice."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a region tells the authority."""

    after: int
    """The last row of its own that it knows to be booked."""
    rows: Sequence[Entry]
    """Those that follow, in order, none left out."""
    returned: Mapping[tuple[str, str], int]
    """What it gave back in total, by account and period."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the authority answers."""

    shipped_seq: int
    shipped_id: str | None
    """Of the row with that number."""
    period: str
    regions: int
    """How many hold slices."""
    slices: Mapping[tuple[str, str], Slice]
    """By account and period: those that are unfinished or of the current period."""
