"""What the gateway tells of its ledger: to the operator all of it, to a consumer its own calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Final

from llmbudget.api.money import format_usd
from llmbudget.contract.config import GatewayConfig, Wire
from llmbudget.contract.events import (
    HEARTBEAT_SECONDS,
    AvailabilityEvent,
    BalanceEvent,
    EventName,
    KeysEvent,
    LedgerEvent,
    SnapshotEvent,
)
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.wire import CallerGone, Exchange, Headers
from llmbudget.ledger.interface import Entry, Envelope, Ledger

STREAM_HEADERS: Final[Headers] = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store"),
]
_LOOK_SECONDS: Final = 1.0
"""How often it is looked how the gateway itself is, while a stream is open."""

Configured = Callable[[], GatewayConfig | None]


async def stream_balances(
    ledger: Ledger,
    keys: Keys,
    configured: Configured,
    exchange: Exchange,
    ended: Callable[[], bool],
) -> None:
    """Send the event stream until its reader goes away, or the gateway says that it ends."""
    transport = exchange.response_stream(200, STREAM_HEADERS)
    queue: asyncio.Queue[LedgerEvent | None] = asyncio.Queue(1)
    feeder = asyncio.create_task(_feed(ledger, queue))
    seq, silent = 0, 0.0
    told: dict[EventName, Wire] = {}
    with contextlib.suppress(CallerGone):
        try:
            while not ended():
                for name, event in _itself(ledger, keys, configured()):
                    if told.get(name) != event:
                        told[name] = event
                        await transport.send_bytes(_event(name, seq, event))
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        item = await queue.get()
                except TimeoutError:
                    silent += _LOOK_SECONDS
                    if silent >= HEARTBEAT_SECONDS:
                        silent = 0.0
                        await transport.send_bytes(b": heartbeat\n\n")
                    continue
                if item is None:
                    return
                seq = item.seq
                await transport.send_bytes(_event(_name(item), seq, item))
        finally:
            feeder.cancel()


async def _feed(ledger: Ledger, queue: asyncio.Queue[LedgerEvent | None]) -> None:
    """Follow the ledger; its end, whatever ended it, ends the stream."""
    try:
        async for event in ledger.subscribe():
            await queue.put(event)
    finally:
        with contextlib.suppress(asyncio.QueueFull):
            queue.put_nowait(None)


def _name(event: LedgerEvent) -> EventName:
    if isinstance(event, BalanceEvent):
        return EventName.BALANCE
    return EventName.SNAPSHOT if isinstance(event, SnapshotEvent) else EventName.ACTION


def _itself(
    ledger: Ledger, keys: Keys, config: GatewayConfig | None
) -> Iterator[tuple[EventName, Wire]]:
    """Tell how the gateway itself is: whether it can count, and which keys it lacks."""
    yield EventName.LEDGER, AvailabilityEvent(problem=ledger.problem)
    if config is not None:
        reasons = keys.missing(config.providers)
        yield EventName.KEYS, KeysEvent(missing=tuple(reasons), reasons=reasons)


def _event(name: EventName, seq: int, event: Wire) -> bytes:
    data = event.model_dump_json(by_alias=True)
    return f"event: {name}\nid: {seq}\ndata: {data}\n\n".encode()


def entry_document(entry: Entry) -> bytes:
    """Write one row for the consumer whose call it was."""
    document = {
        "id": entry.id,
        "ts": entry.ts.isoformat(),
        "budget": entry.account,
        "period": entry.period,
        "provider": entry.provider,
        "model": entry.model,
        "tokens_in": entry.tokens_in,
        "tokens_out": entry.tokens_out,
        "cost_usd": format_usd(entry.cost),
        "held_usd": format_usd(entry.held),
        "task_id": entry.task_id,
        "agent": entry.agent,
        "status": entry.status,
        "outcome": entry.outcome.value,
        "envelope": entry.envelope,
    }
    return json.dumps(document).encode()


def envelope_document(envelope: Envelope) -> bytes:
    """Write an envelope for those who may use it."""
    document = {
        "id": envelope.id,
        "budget": envelope.account,
        "period": envelope.period,
        "state": "closed" if envelope.closed else "open",
        "cap_usd": format_usd(envelope.cap),
        "spent_usd": format_usd(envelope.spent),
        "held_usd": format_usd(envelope.held),
        "left_usd": format_usd(envelope.left),
        "opened_by": envelope.consumer,
        "service_accounts": envelope.users,
        "task_id": envelope.task_id,
        "opened_at": envelope.opened.isoformat(),
        "expires_at": envelope.expires.isoformat(),
        "closed_at": envelope.closed.isoformat() if envelope.closed else None,
    }
    return json.dumps(document).encode()
