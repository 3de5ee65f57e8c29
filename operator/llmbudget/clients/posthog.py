"""`llm_usage` events to PostHog, in batches whose delivery is known."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import httpx

from llmbudget.telemetry.logs import silence

EVENT: Final = "llm_usage"
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
    """Sends batches with one project key; it belongs to the event loop that made it.

    PostHog's package writes the requests and reads the answers. They are carried by a transport of
    ours: its own session follows redirects, with the key, and the proxies of the environment.
    """

    def __init__(self, key: str, host: str, transport: httpx.AsyncBaseTransport) -> None:
        # Only now: its packages take memory and time that a gateway without it does without.
        from posthog import request

        # It logs what PostHog answers, which may repeat the key.
        silence("posthog")
        self._request: Any = request
        self._key = key
        self._host = host
        self._client = httpx.AsyncClient(
            transport=transport, timeout=_TIMEOUT_SECONDS, follow_redirects=False, trust_env=False
        )
        self._session = _Session(self._client, asyncio.get_running_loop())

    async def send(self, events: Sequence[UsageEvent]) -> None:
        """Deliver a batch, all of it or nothing.

        Raises:
            NotDelivered: the message carries no key.
        """
        if events:
            await asyncio.to_thread(self._send, [_written(event) for event in events])

    def _send(self, batch: list[dict[str, object]]) -> None:
        try:
            self._request.batch_post(self._key, self._host, session=self._session, batch=batch)
        except self._request.APIError as error:
            # What it says may repeat the key.
            raise NotDelivered(f"status {error.status}") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError, TypeError) as error:
            # RuntimeError: it was closed. TypeError: a refusal that is no JSON object.
            raise NotDelivered(type(error).__name__) from None

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()


class _Session:
    """As much of a `requests.Session` as PostHog's package uses, for its threads."""

    def __init__(self, client: httpx.AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def post(
        self, url: str, data: str | bytes, headers: Mapping[str, str], timeout: float
    ) -> httpx.Response:
        """Send one request in the event loop, and wait for its answer."""
        posting = self._client.post(url, content=data, headers=headers, timeout=timeout)
        return asyncio.run_coroutine_threadsafe(posting, self._loop).result()


def _written(event: UsageEvent) -> dict[str, object]:
    return {
        "event": EVENT,
        "uuid": event.uuid,
        "timestamp": event.at.isoformat(),
        "distinct_id": event.distinct_id,
        # The address that events come from is the gateway's.
        "properties": {**event.properties, "$geoip_disable": True},
    }
