"""A streamed answer, relayed as it comes and metered on the way.

When the caller goes away the provider's answer is still read to its end, within bounds, since only
its end says what it cost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from llmbudget.api.money import format_usd
from llmbudget.gateway.attempt import Attempt
from llmbudget.gateway.connections import Doubtful
from llmbudget.gateway.keys import longest_mask, mask
from llmbudget.gateway.protocols.sse import MAX_EVENT, EventMeter, cost_comment
from llmbudget.gateway.upstream import Answer
from llmbudget.gateway.wire import CallerGone, Exchange, Transport
from llmbudget.ledger.interface import Status

DRAIN_SECONDS: Final = 60.0
DRAIN_BYTES: Final = 8 * 1024 * 1024
"""Bounds of reading on for a caller that is gone; more bytes where events carry pictures."""


class _Listener:
    """The caller, who may be gone."""

    def __init__(self, transport: Transport, key: str) -> None:
        self._transport = transport
        self._key = key
        self._rest = b""
        self.gone = False

    async def send(self, data: bytes, *, whole: bool = True) -> None:
        """Send on; what is no whole event may end within a key, so its end is kept back."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        data = mask(data, self._key)
        if not whole:
            end = max(0, len(data) - longest_mask(self._key))
            data, self._rest = data[:end], data[end:]
        if data and not self.gone:
            try:
                await self._transport.send_bytes(data)
            except CallerGone:
                self.gone = True


async def relay(
    attempt: Attempt,
    answer: Answer,
    exchange: Exchange,
    meter: EventMeter,
    count_tokens: Callable[[int], None],
) -> None:
    """Send a stream on, charge it, and end it with what it cost."""
    hold = attempt.held.hold
    headers = [*attempt.headers, ("content-type", meter.content_type)]
    headers += [("cache-control", "no-store"), ("x-llmbudget-cost-usd", format_usd(hold.amount))]
    listener = _Listener(exchange.response_stream(200, headers), attempt.key)
    why = await _pump(attempt, answer, meter, listener)
    await listener.send(meter.finish())
    usage = None if why or meter.failed else attempt.believed(meter.usage)
    if why or meter.failed:
        attempt.status = Status.ERROR
    charged = attempt.costs(usage)
    await attempt.charge(usage, charged)
    if usage is not None:
        count_tokens(usage.tokens_in + usage.tokens_out)
    why = why or (None if usage else "no usage")
    error = "broken_stream" if attempt.status is Status.ERROR else ""
    attempt.record.end(attempt.status, charged, usage, why, error)
    await listener.send(meter.ending(cost_comment(hold.id, format_usd(charged))))


async def _pump(
    attempt: Attempt, answer: Answer, meter: EventMeter, listener: _Listener
) -> str | None:
    """Relay until the end; return what went wrong, if anything did."""
    drained = 0
    first = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None) as drain:
            while not meter.done:
                try:
                    chunk = await answer.read_chunk()
                except Doubtful as error:
                    return str(error)
                if chunk is None:
                    return None if meter.open_ended else "the stream ended early"
                if first:
                    attempt.record.first_chunk()
                    first = False
                await listener.send(meter.feed(chunk), whole=not meter.unread)
                if listener.gone:
                    drained += len(chunk)
                    if drained > DRAIN_BYTES * (meter.max_event // MAX_EVENT):
                        return "the caller left, and the rest is too long to read"
                    if drain.when() is None:
                        drain.reschedule(asyncio.get_running_loop().time() + DRAIN_SECONDS)
            return None
    return "the caller left, and the rest took too long to come"
