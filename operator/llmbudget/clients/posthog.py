"""`llm_usage` events to PostHog, in batches whose delivery is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llmbudget.telemetry.logs import silence

EVENT: Final = "llm_usage"
_TIMEOUT_SECONDS: Final = 15


class NotDelivered(Exception):
    """PostHog did not take a batch: it must be sent again."""


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One event. PostHog drops a second one with the same uuid."""

    uuid: str
    at: datetime
    distinct_id: str
    properties: dict[str, object]


class PostHogSender:
    """Sends batches with one project key."""

    def __init__(self, key: str, host: str) -> None:
        # Only now: its packages take memory and time that a gateway without it does without.
        from posthog import Posthog

        # It logs what PostHog answers, which may repeat the key.
        silence("posthog")
        self._failures: list[Exception] = []
        self._client: Any = Posthog(
            key,
            host=host,
            on_error=lambda error, _: self._failures.append(error),
            max_retries=0,
            timeout=_TIMEOUT_SECONDS,
            flush_interval=0.05,
            disable_geoip=True,
        )

    async def send(self, events: Sequence[UsageEvent]) -> None:
        """Deliver a batch.

        Raises:
            NotDelivered: some of it was not; the message carries no key.
        """
        await asyncio.to_thread(self._send, events)

    def _send(self, events: Sequence[UsageEvent]) -> None:
        self._failures.clear()
        for event in events:
            queued = self._client.capture(
                EVENT,
                distinct_id=event.distinct_id,
                properties=event.properties,
                timestamp=event.at,
                uuid=event.uuid,
            )
            if queued is None:
                raise NotDelivered("PostHog's client took no event")
        # Each request has its own limit, so this ends; a shorter one would leave some under way.
        self._client.flush(timeout_seconds=None)
        if self._failures:
            raise NotDelivered(type(self._failures[0]).__name__)

    async def close(self) -> None:
        """End the client's thread."""
        await asyncio.to_thread(self._client.shutdown)
