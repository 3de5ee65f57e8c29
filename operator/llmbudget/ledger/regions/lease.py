"""How long a region may spend without having been heard.

Nobody's clock is asked: the authority counts how long a region has been silent while it was
watched; each of the region's gateways counts from the moment at which it sent what was last
answered, and stops before the authority can have given the region up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

REGION_SECONDS: Final = 900.0
"""A region that is silent for longer is given up: what it holds is charged as unknown."""
_MARGIN: Final = 0.8
"""Part of that time in which its gateways spend: steady clocks don't run alike to the last second,
and a call that was let in takes a moment to be written down."""


class Lease:
    """One gateway's leave to spend from its region's slices."""

    def __init__(
        self, seconds: float = REGION_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds * _MARGIN
        self._clock = clock
        self._sent: float | None = None
        self.why: str | None = None
        """It was made void; None: it was not, or was renewed since."""

    def now(self) -> float:
        """Tell the instant at which something is about to be sent."""
        return self._clock()

    def renewed(self, sent: float) -> None:
        """What was sent at an instant was answered."""
        self._sent = sent if self._sent is None else max(sent, self._sent)
        self.why = None

    def void(self, why: str) -> None:
        """Nothing may be spent until something that is sent from now on is answered."""
        self._sent, self.why = None, why

    @property
    def age(self) -> float | None:
        """Seconds since it was renewed; None: it never was."""
        return None if self._sent is None else self._clock() - self._sent

    @property
    def valid(self) -> bool:
        """Whether slices may be spent."""
        age = self.age
        return age is not None and age < self._seconds

    @property
    def due(self) -> bool:
        """Whether it should be renewed: there is still time to try several times."""
        age = self.age
        return age is None or age >= self._seconds / 8
