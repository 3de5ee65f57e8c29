"""Series to Datadog's API (`POST /api/v2/series`), without an agent."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from typing import Final

import httpx

_PATH: Final = "/api/v2/series"
_ACCEPTED: Final = 202
_TIMEOUT_SECONDS: Final = 10.0


class NotTaken(Exception):
    """Datadog did not take a batch; the message carries no key."""


class DatadogSender:
    """Sends batches with one API key."""

    def __init__(self, url: str, key: str, transport: httpx.AsyncBaseTransport) -> None:
        # Redirects are not followed, and proxies of the environment not used: both would carry the
        # key elsewhere.
        self._client = httpx.AsyncClient(
            base_url=url,
            transport=transport,
            headers={"DD-API-KEY": key},
            timeout=_TIMEOUT_SECONDS,
            follow_redirects=False,
            trust_env=False,
        )

    async def send(self, series: Sequence[dict[str, object]]) -> None:
        """Deliver a batch.

        Raises:
            NotTaken.
        """
        text = json.dumps({"series": list(series)}).encode()
        body = await asyncio.to_thread(gzip.compress, text)
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        try:
            answer = await self._client.post(_PATH, content=body, headers=headers)
        except (httpx.HTTPError, OSError) as error:
            raise NotTaken(type(error).__name__) from None
        if answer.status_code != _ACCEPTED:
            # What it says may repeat the key.
            raise NotTaken(f"status {answer.status_code}")

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()
