"""How often something may happen: a few times at once, and then once in a while."""

from __future__ import annotations


class Pace:
    """A token bucket for each key, as the instant at which it would be full."""

    def __init__(self, burst: int, seconds: float) -> None:
        """Let each key happen `burst` times at once, and once more every so many seconds."""
        self._seconds = seconds
        self._spare = (burst - 1) * seconds
        self._full_at: dict[str, float] = {}

    def wait(self, key: str, now: float) -> float:
        """Take a token where there is one: 0. Otherwise tell in how many seconds there will be, and
        take none: whoever waits for it does so once, however often it is asked for meanwhile."""
        full_at = max(now, self._full_at.get(key, now))
        wait = full_at - self._spare - now
        if wait > 0:
            return wait
        self._full_at[key] = full_at + self._seconds
        return 0.0

    def forget(self, key: str) -> None:
        """Let a key begin anew."""
        self._full_at.pop(key, None)
