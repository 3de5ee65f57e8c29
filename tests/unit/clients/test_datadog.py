"""Series to Datadog: a batch is taken or known not to be, and the key is not told."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from llmbudget.clients.datadog import DatadogSender, NotTaken
from llmbudget.local.http1 import Answer, Request, port_of, serve

KEY = "dd-canary-0123456789abcdef"
SERIES: list[dict[str, Any]] = [{"metric": "m", "type": 3, "points": [], "tags": []}]


class Service:
    """Datadog's API: takes series, or answers as it was told to."""

    def __init__(self) -> None:
        self.status = 202
        self.headers = {"location": "/elsewhere"}
        self.seen: list[Request] = []

    async def take(self, request: Request, answer: Answer) -> None:
        self.seen.append(request)
        answer.send(self.status, f'{{"errors": ["{KEY}"]}}'.encode(), headers=self.headers)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def sender(service: Service) -> AsyncIterator[DatadogSender]:
    async with await serve(service.take, 0) as server:
        url = f"http://127.0.0.1:{port_of(server)}"
        made = DatadogSender(url, KEY, httpx.AsyncHTTPTransport())
        yield made
        await made.close()


async def test_a_batch_is_taken(sender: DatadogSender, service: Service) -> None:
    await sender.send(SERIES)
    (request,) = service.seen
    assert (request.method, request.path) == ("POST", "/api/v2/series")
    assert request.headers["dd-api-key"] == KEY
    assert request.headers["content-type"] == "application/json"
    assert json.loads(gzip.decompress(request.body)) == {"series": SERIES}


@pytest.mark.parametrize("status", [200, 307, 400, 403, 413, 429, 500])
async def test_any_other_answer_is_a_failure_that_does_not_tell_the_key(
    sender: DatadogSender, service: Service, status: int
) -> None:
    service.status = status
    with pytest.raises(NotTaken, match=f"^status {status}$"):
        await sender.send(SERIES)
    assert len(service.seen) == 1, "a redirect is not followed"


async def test_a_service_that_is_away_is_a_failure() -> None:
    sender = DatadogSender("http://127.0.0.1:9", KEY, httpx.AsyncHTTPTransport())
    with pytest.raises(NotTaken, match="ConnectError"):
        await sender.send(SERIES)
    await sender.close()
