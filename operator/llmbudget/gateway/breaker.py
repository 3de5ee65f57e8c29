"""A circuit breaker: a provider that keeps failing is left alone for a while.

After a row of failures no call is sent to it, so that callers are not kept waiting, fall back at
once, and are not charged for doubtful outcomes one after the other. Then one call at a time tries
it again: an answer closes the circuit, another failure opens it for twice as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

FAILURES: Final = 5
"""Failures in a row that open the circuit: nothing came, or a status from 500 on."""
PAUSE_SECONDS: Final = (2.0, 60.0)
"""How long it is open at first, and at most."""
TRIAL_SECONDS: Final = 5.0
"""How long others wait for the outcome of the one call that tries again."""


class Breaker:
    """The circuit of one provider."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_from = float("-inf")
        self._pause = PAUSE_SECONDS[0]

    @property
    def open(self) -> bool:
        """Whether the provider failed too often and has not answered since."""
        return self._failures >= FAILURES

    def wait(self) -> float:
        """Tell in how many seconds a call may be sent; 0: now."""
        return max(0.0, self._closed_from - self._clock()) if self.open else 0.0

    def sending(self) -> bool:
        """A call is sent; tell whether it tries for all others, since the circuit is open."""
        if self.open:
            self._closed_from = self._clock() + TRIAL_SECONDS
        return self.open

    def answered(self) -> None:
        """The provider works."""
        self._failures = 0
        self._pause = PAUSE_SECONDS[0]

    def failed(self, *, trial: bool) -> None:
        """The provider failed; `trial`: the circuit was open when that call was sent."""
        if self.open and not trial:
            return  # sent before the circuit opened: it says nothing new
        self._failures += 1
        if self.open:
            self._closed_from = self._clock() + self._pause
            self._pause = min(2 * self._pause, PAUSE_SECONDS[1])
