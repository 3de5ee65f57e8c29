"""Rate limits: token buckets in memory, and calls under way.

A burst beyond a consumer's limits waits for its turn. A limit says when to come back, and that is
true: after that long, there is room for one more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from llmbudget.contract.config import Limits
from llmbudget.decide.consumers import Consumer
from llmbudget.gateway.protocols.errors import Refusal, rate_limited

Monotonic = Callable[[], float]

QUEUE_SECONDS: Final = 5.0
"""How long a call of a burst waits for its turn."""
_MOST_WAITING: Final = 1000
"""Calls of one consumer that wait at once."""
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

    def wait(self, now: float, amount: float = 1, *, queued: int = 0) -> float:
        """Tell in how many seconds `amount` can be taken, when `queued` others take one each
        before; 0: now. More than the bucket holds can be taken once it is full."""
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        lacking = min(amount, self._size) + queued - self._level
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
    """The limits of each consumer, kept over changes of the configuration.

    A burst waits its turn, first come, first served, for at most `patience` seconds: where that is
    sure to be in vain, nobody waits.
    """

    def __init__(self, clock: Monotonic, patience: float = QUEUE_SECONDS) -> None:
        self._clock = clock
        self._patience = patience
        self._states: dict[tuple[str, str], _State] = {}

    def admitted(self, consumer: Consumer) -> AbstractAsyncContextManager[Callable[[int], None]]:
        """Admit one call for the block; the value counts its tokens once they are known. It raises
        a Refusal, 429, where there is no room."""
        key = (consumer.account.name, consumer.name)
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = _State(self._clock)
        if state.limits is not consumer.limits and state.limits != consumer.limits:
            state.change(consumer.limits)
        return _Admitted(state, self._patience)


class _Admitted:
    """The block of one call. A class, since a generator would cost several times as much."""

    __slots__ = ("_patience", "_state")

    def __init__(self, state: _State, patience: float) -> None:
        self._state = state
        self._patience = patience

    async def __aenter__(self) -> Callable[[int], None]:
        await self._state.admit(self._patience)
        return self._state.count_tokens

    async def __aexit__(self, *_: object) -> None:
        self._state.leave()


class _State:
    """Buckets, calls under way and calls that wait of one consumer."""

    def __init__(self, clock: Monotonic) -> None:
        self.limits = Limits()
        self._clock = clock
        self._running = 0
        self._waiting = 0
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._line = asyncio.Lock()
        """Held by the first of those that wait; a lock is fair."""
        self._changed = asyncio.Event()
        """Something ended, or the limits are others."""

    def change(self, limits: Limits) -> None:
        """Take other limits over; what is used of those that stay the same stays used."""
        now, was = self._clock(), self.limits
        self.limits = limits
        if limits.requests_per_minute != was.requests_per_minute:
            self._requests = _bucket(limits.requests_per_minute, now)
        if limits.tokens_per_minute != was.tokens_per_minute:
            self._tokens = _bucket(limits.tokens_per_minute, now)
        self._changed.set()

    async def admit(self, patience: float) -> None:
        """Return when the call may go.

        Raises:
            Refusal: 429, where that is not within `patience` seconds.
        """
        if self._waiting or not self._free():
            if self._waiting >= _MOST_WAITING or self._delay() > patience:
                raise self._refusal()
            await self._wait(patience)
        self._running += 1
        if self._requests is not None:
            self._requests.take()

    def leave(self) -> None:
        """A call is over."""
        self._running -= 1
        self._changed.set()

    def count_tokens(self, tokens: int) -> None:
        """Count what a call used."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    async def _wait(self, patience: float) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(patience), self._line:
                await self._until_free()
                return
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
        raise self._refusal()

    async def _until_free(self) -> None:
        while not self._free():
            self._changed.clear()
            delay = self._bucket_delays()[0]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay or None):
                    await self._changed.wait()

    def _full(self) -> bool:
        most = self.limits.concurrent
        return most is not None and self._running >= most

    def _free(self) -> bool:
        """Tell whether the first in line may go."""
        if self._full():
            return False
        return not (self._requests or self._tokens) or not self._bucket_delays()[0]

    def _delay(self) -> float:
        """Tell how many seconds one that joins the line waits at least."""
        return self._bucket_delays(self._waiting)[0]

    def _bucket_delays(self, ahead: int = 0) -> tuple[float, str]:
        """Tell how long the buckets make one wait who has so many before them, and which one."""
        now = self._clock()
        tokens = self._tokens.wait(now) if self._tokens else 0.0
        requests = self._requests.wait(now, queued=ahead) if self._requests else 0.0
        if tokens >= requests:
            return tokens, f"{self.limits.tokens_per_minute} tokens"
        return requests, f"{self.limits.requests_per_minute} requests"

    def _refusal(self) -> Refusal:
        delay, what = self._bucket_delays(self._waiting)
        if self._full() and not delay:
            return rate_limited(f"{self.limits.concurrent} calls are under way already.", 1)
        return rate_limited(f"{what} a minute are used.", max(1, math.ceil(delay)))


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now)
