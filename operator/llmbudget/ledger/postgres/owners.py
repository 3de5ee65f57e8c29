"""Who else owns the ledger, and who is gone.

Every owner counts its commits in a row of its own, at least one in a few seconds. Whoever does not
get on for long enough, by the steady clock of one who watched meanwhile, is dead: its row is
deleted, and what it held is charged. No wall clock is asked, and while the database is away nobody
is watched: others had no chance to show that they live.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

LOOK_SECONDS: Final = 3.0
"""How often an owner looks after the others, and shows by it that it lives."""
LEASE_SECONDS: Final = 15.0
"""How long an owner may be still."""

Name = TypeVar("Name", int, str)


class Watch(Generic[Name]):
    """What one owner sees of the others: how long each stood still while this one looked."""

    def __init__(self, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._looked_at: float | None = None
        self._tables = ""
        self._seen: dict[Name, tuple[int, float]] = {}

    def dead(
        self, owners: Mapping[Name, int], mine: Name | None = None, tables: str = ""
    ) -> list[Name]:
        """Take down how far each owner has come; list those that stood still for too long. In other
        tables than the last time, an owner is another one, whatever its number."""
        if tables != self._tables:
            self._tables, self._seen = tables, {}
        now = self._clock()
        passed = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        self._seen = {
            epoch: (commits, self._still(epoch, commits, passed))
            for epoch, commits in owners.items()
            if epoch != mine
        }
        return [epoch for epoch, (_, still) in self._seen.items() if still >= self._lease_seconds]

    def _still(self, epoch: Name, commits: int, passed: float) -> float:
        known = self._seen.get(epoch)
        return known[1] + passed if known is not None and known[0] == commits else 0.0

    def interrupted(self) -> None:
        """The connection was lost: what happened until the next look was not seen, and is not
        counted. What was seen before is, or connections that flap would keep the dead alive."""
        self._looked_at = None
