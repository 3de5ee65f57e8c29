"""`llm_usage` events to PostHog's API (`POST /batch/`), in batches whose delivery is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import httpx

EVENT: Final = "llm_usage"
_ACCEPTED: Final = 200
_TIMEOUT_SECONDS: Final = 15.0


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

    def __init__(self, key: str, host: str, transport: httpx.AsyncBaseTransport) -> None:
        self._key = key
        self._url = f"{host.rstrip('/')}/batch/"
        # Redirects are not followed, and proxies of the environment not used: both would carry the
        # key elsewhere.
        self._client = httpx.AsyncClient(
            transport=transport, timeout=_TIMEOUT_SECONDS, follow_redirects=False, trust_env=False
        )

    async def send(self, events: Sequence[UsageEvent]) -> None:
        """Deliver a batch, all of it or nothing.

        Raises:
            NotDelivered: the message carries no key.
        """
        if not events:
            return
        body = json.dumps({"api_key": self._key, "batch": [_written(each) for each in events]})
        headers = {"content-type": "application/json"}
        try:
            answer = await self._client.post(self._url, content=body.encode(), headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError) as error:
            # RuntimeError: it was closed.
            raise NotDelivered(type(error).__name__) from None
        if answer.status_code != _ACCEPTED:
            # What it says may repeat the key.
            raise NotDelivered(f"status {answer.status_code}")

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()


def _written(event: UsageEvent) -> dict[str, object]:
    return {
        "event": EVENT,
        "uuid": event.uuid,
        "timestamp": event.at.isoformat(),
        "distinct_id": event.distinct_id,
        # The address that events come from is the gateway's.
        "properties": {**event.properties, "$geoip_disable": True},
    }
