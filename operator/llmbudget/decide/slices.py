"""How much of a budget a region is given in advance, and what it gives back, in nano-USD.

Escrow: what a region has been given is set aside at the authority, so it may be spent without
asking. The less is left, the smaller the slices; where they would be smaller than the call that
asks, each call is given its own bound, which is the same as asking for every call.
"""

from __future__ import annotations

from typing import Final

PART: Final = 4
"""All regions' shares together are one part in so many of what is left: the rest stays where every
region can ask for it."""
UNCAPPED: Final = 1_000 * 10**9
"""A slice where no account of the path has a cap."""
_SLACK: Final = 2
"""A region that has up to so many times what it should keep gives nothing back: slices must not go
to and fro."""


def slice_size(asked: int, left: int | None, regions: int) -> int:
    """Tell how much to give a region that asks for some money; never more than is left.

    `left` None: there is no cap anywhere.
    """
    if left is None:
        return max(asked, UNCAPPED)
    return max(0, min(left, max(asked, _share(left, regions))))


def to_give_back(unused: int, left: int | None, recent: int, regions: int, largest: int = 0) -> int:
    """Tell how much of its unused money a region gives back: all beyond its share of what is left,
    and beyond what it spent in the recent past, of which it may need as much again. Where a share
    does not cover the largest call, nothing is kept: the last call may need every rest."""
    if left is None:
        return 0
    share = _share(max(0, left) + unused, regions)
    if share < largest:
        return unused
    keep = max(recent, share)
    return unused - keep if unused > _SLACK * keep else 0


def _share(left: int, regions: int) -> int:
    return left // (PART * max(1, regions))
