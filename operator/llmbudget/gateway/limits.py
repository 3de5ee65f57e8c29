"""Rate limits: token buckets in memory, and calls under way.

A limit says when to come back, and that is true: after that long, there is room for one more.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Final

from llmbudget.contract.config import Limits
from llmbudget.decide.consumers import Consumer
from llmbudget.gateway.protocols.errors import rate_limited

Monotonic = Callable[[], float]

_NOTHING: Final = 1e-9
_MOST_CLIENTS: Final = 10_000
"""Clients that are remembered; the ones seen longest ago are forgotten first."""


class Bucket:
    """A token bucket that holds a minute's worth and refills evenly."""

    __slots__ = ("_at", "_level", "_rate", "_size")

    def __init__(self, per_minute: int, now: float) -> None:
        self._size = max(per_minute, 1)
        self._rate = self._size / 60
        self._level: float = self._size
        self._at = now

    def wait(self, now: float, amount: float = 1) -> float:
        """Tell in how many seconds `amount` can be taken; 0: now. More than the bucket holds can
        be taken once it is full."""
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        lacking = min(amount, self._size) - self._level
        # What the rounding of floats leaves over is nothing.
        return lacking / self._rate if lacking > _NOTHING else 0.0

    def take(self, amount: float = 1) -> None:
        """Take out; the level may go below 0, when more was used than was asked for."""
        self._level -= amount


class ClientLimits:
    """A limit of events a minute for each client address."""

    def __init__(self, per_minute: int, clock: Monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    def check(self, client: str) -> None:
        """Refuse a client that has none left.

        Raises:
            Refusal: 429.
        """
        wait = self._bucket(client).wait(self._clock())
        if wait:
            raise rate_limited("Too many requests from this address.", math.ceil(wait))

    def count(self, client: str, events: int = 1) -> None:
        """Count events; a number below 0 takes them back."""
        self._bucket(client).take(events)

    def _bucket(self, client: str) -> Bucket:
        bucket = self._buckets.pop(client, None)
        if bucket is None:
            bucket = Bucket(self._per_minute, self._clock())
            if len(self._buckets) >= _MOST_CLIENTS:
                del self._buckets[next(iter(self._buckets))]
        # Back to the end: the order is that of use.
        self._buckets[client] = bucket
        return bucket


class ConsumerLimits:
    """The limits of each consumer, kept over changes of the configuration."""

    def __init__(self, clock: Monotonic) -> None:
        self._clock = clock
        self._states: dict[tuple[str, str], _State] = {}

    @contextlib.contextmanager
    def admitted(self, consumer: Consumer) -> Iterator[Callable[[int], None]]:
        """Admit one call; the value counts its tokens once they are known.

        Raises:
            Refusal: 429.
        """
        limits = consumer.limits
        key = (consumer.account.name, consumer.name)
        state = self._states.get(key)
        if state is None or state.limits != limits:
            state = _State(limits, self._clock(), state)
            self._states[key] = state
        state.admit(self._clock())
        try:
            yield lambda tokens: self._states[key].count_tokens(tokens)
        finally:
            # The configuration may have replaced it meanwhile; the calls under way moved along.
            self._states[key].running -= 1


class _State:
    """Buckets and calls under way of one consumer."""

    def __init__(self, limits: Limits, now: float, before: _State | None) -> None:
        self.limits = limits
        self.running: int = before.running if before else 0
        was = before.limits if before else Limits()
        self._requests = _bucket(limits.requests_per_minute, now)
        if before and was.requests_per_minute == limits.requests_per_minute:
            self._requests = before._requests
        self._tokens = _bucket(limits.tokens_per_minute, now)
        if before and was.tokens_per_minute == limits.tokens_per_minute:
            self._tokens = before._tokens

    def admit(self, now: float) -> None:
        most = self.limits.concurrent
        if most is not None and self.running >= most:
            raise rate_limited(f"{most} calls are under way already.", 1)
        of_tokens = self._tokens.wait(now) if self._tokens else 0.0
        of_requests = self._requests.wait(now) if self._requests else 0.0
        wait = max(of_tokens, of_requests)
        if wait:
            tokens = f"{self.limits.tokens_per_minute} tokens"
            requests = f"{self.limits.requests_per_minute} requests"
            what = tokens if of_tokens >= of_requests else requests
            raise rate_limited(f"{what} a minute are used.", math.ceil(wait))
        if self._requests is not None:
            self._requests.take()
        self.running += 1

    def count_tokens(self, tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.take(tokens)


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now)
