"""What the gateway tells of its ledger: to the operator all of it, to a consumer its own calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Final

from llmbudget.api.money import format_usd
from llmbudget.contract.config import GatewayConfig
from llmbudget.contract.events import (
    HEARTBEAT_SECONDS,
    BalanceEvent,
    EventName,
    KeysEvent,
    LedgerEvent,
    SnapshotEvent,
)
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.wire import Exchange, Headers
from llmbudget.ledger.interface import Entry, Ledger

STREAM_HEADERS: Final[Headers] = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store"),
]
_KEYS_SECONDS: Final = 1.0
"""How often the keys are looked at while a stream is open."""

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
    seq, missing, silent = 0, None, 0.0
    # The server raises a RuntimeError when the reader is gone.
    with contextlib.suppress(RuntimeError):
        try:
            while not ended():
                found = _missing(keys, configured())
                if found != missing:
                    missing = found
                    reasons = found or {}
                    event = KeysEvent(missing=tuple(reasons), reasons=reasons).model_dump_json(
                        by_alias=True
                    )
                    await transport.send_bytes(_event(EventName.KEYS, seq, event))
                try:
                    item = await asyncio.wait_for(queue.get(), _KEYS_SECONDS)
                except TimeoutError:
                    silent += _KEYS_SECONDS
                    if silent >= HEARTBEAT_SECONDS:
                        silent = 0.0
                        await transport.send_bytes(b": heartbeat\n\n")
                    continue
                if item is None:
                    return
                seq = item.seq
                document = item.model_dump_json(by_alias=True)
                await transport.send_bytes(_event(_name(item), seq, document))
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


def _missing(keys: Keys, config: GatewayConfig | None) -> Mapping[str, str] | None:
    return None if config is None else keys.missing(config.providers)


def _event(name: EventName, seq: int, data: str) -> bytes:
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
    }
    return json.dumps(document).encode()
