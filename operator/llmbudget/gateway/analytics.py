"""Usage events to PostHog: the ledger's rows are the outbox.

Rows are read in their order after a stored cursor, sampled, sent, and only then is the cursor
moved on. So events survive restarts and an outage of PostHog, and no call waits for them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Final

from llmbudget.api.money import NANO_PER_USD
from llmbudget.clients.posthog import NotDelivered, PostHogSender, UsageEvent
from llmbudget.contract.config import PostHogConfig
from llmbudget.gateway.checked import CheckedTransport, trusted
from llmbudget.gateway.configuration import Configuration
from llmbudget.ledger.interface import Entry, Ledger, LedgerError

log = logging.getLogger(__name__)

CURSOR: Final = "posthog"
BATCH: Final = 100
_IDLE_SECONDS: Final = 2.0
_BACKOFF_SECONDS: Final = (1.0, 300.0)


class Analytics:
    """Sends what the configuration asks for."""

    def __init__(self, ledger: Ledger, configuration: Configuration, key_file: Path) -> None:
        self._ledger = ledger
        self._configuration = configuration
        self._key_file = key_file
        self._sender: PostHogSender | None = None
        self._sender_of: tuple[str, str, bool] | None = None

    async def follow(self) -> None:
        """Send until cancelled."""
        pause, longest = _BACKOFF_SECONDS
        while True:
            try:
                sent = await self._send_batch()
            except (NotDelivered, LedgerError) as error:
                log.warning("posthog", extra={"fields": {"why": str(error)}})
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
            else:
                pause = _BACKOFF_SECONDS[0]
                if not sent:
                    await asyncio.sleep(_IDLE_SECONDS)

    async def _send_batch(self) -> bool:
        """Send the next rows; False: there are none, or they are not wanted."""
        routes = self._configuration.routes
        if routes is None or routes.config.posthog is None:
            return False
        wanted = routes.config.posthog
        if not await self._ledger.leads():
            return False
        sender = await self._connect(wanted)
        if sender is None:
            return False
        entries = await self._ledger.entries(await self._ledger.cursor(CURSOR), BATCH)
        if not entries:
            return False
        events = [event_of(entry) for entry in entries if sampled(entry.id, wanted.sample_rate)]
        if events:
            await sender.send(events)
        await self._ledger.advance(CURSOR, entries[-1].seq)
        return True

    async def _connect(self, wanted: PostHogConfig) -> PostHogSender | None:
        try:
            key = self._key_file.read_text().strip()
        except OSError:
            return None
        of = (key, wanted.host, wanted.allow_private)
        if key and self._sender_of != of:
            if self._sender is not None:
                await self._sender.close()
            context = await asyncio.to_thread(trusted, None)
            transport = CheckedTransport(context, allow_private=wanted.allow_private)
            self._sender = PostHogSender(key, wanted.host, transport)
            self._sender_of = of
        return self._sender


def sampled(entry_id: str, rate: Decimal) -> bool:
    """Decide by the id alone, so that a repetition decides the same."""
    digest = hashlib.blake2b(entry_id.encode(), digest_size=8).digest()
    return Decimal(int.from_bytes(digest)) < rate * (1 << 64)


def event_of(entry: Entry) -> UsageEvent:
    """Write a row with the 371OS guide's properties."""
    return UsageEvent(
        uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, entry.id)),
        at=entry.ts,
        distinct_id=entry.agent or entry.account,
        properties={
            "provider": entry.provider,
            "model": entry.model,
            # PostHog's numbers are floats; the ledger is what is exact.
            "cost": entry.cost / NANO_PER_USD,
            "agent": entry.agent,
            "tokens_in": entry.tokens_in,
            "tokens_out": entry.tokens_out,
            "status": entry.status,
            "task_id": entry.task_id,
            "$process_person_profile": False,
        },
    )
