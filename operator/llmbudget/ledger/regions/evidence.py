"""What a region's database says against what the authority answered: both only ever grow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.regions.local import Position
from llmbudget.ledger.regions.messages import Answer, LedgerWentBack


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a region's database stands."""

    last_seq: int
    booked_id: str | None
    """Of its row with the number that was booked last; None: no row has it any more."""
    positions: Sequence[Position]


class SlicesDisagree(LedgerUnavailable):
    """A region's database says that it may spend more than it was given."""

    def __init__(self, region: str, position: Position, granted: int) -> None:
        super().__init__(
            f"the database of region {region} says that {position.account} was given"
            f" {position.granted} nano-USD in {position.period}, the budget's ledger gave it"
            f" {granted}: the region spends nothing until they agree. Either database was changed"
            " by others, or the budget's comes from a backup"
        )


def refuse_gone_back(region: str, answer: Answer, stand: Stand) -> None:
    """Compare what was answered with where the region's database stood afterwards.

    Raises:
        LedgerWentBack: it has told more than it knows.
    """
    returned = {(each.account, each.period): each.returned for each in stand.positions}
    booked = {stand.booked_id, answer.shipped_id} - {None}
    if (
        stand.last_seq < answer.shipped_seq
        or len(booked) > 1
        or any(each.returned > returned.get(key, 0) for key, each in answer.slices.items())
    ):
        raise LedgerWentBack(region)


def refuse_excess(region: str, answer: Answer, positions: Iterable[Position]) -> None:
    """Compare where the region's accounts stood with what was answered afterwards.

    Raises:
        SlicesDisagree: one has more than it was given.
    """
    for each in positions:
        found = answer.slices.get((each.account, each.period))
        if found is None and each.period < answer.period:
            continue  # It is finished, and the authority says no more of it.
        granted = 0 if found is None else found.granted
        if each.granted > granted:
            raise SlicesDisagree(region, each, granted)
