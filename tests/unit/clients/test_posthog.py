"""Usage events to PostHog: a batch is delivered or known not to be, and the key is not told."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from llmbudget.clients.posthog import EVENT, NotDelivered, PostHogSender, UsageEvent
from llmbudget.gateway.checked import CheckedTransport, trusted
from llmbudget.local.http1 import Answer, Request, port_of, serve

KEY = "phc_Canary0123456789abcdef"
WHEN = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
NAMES = ["00000000-0000-5000-8000-00000000000a", "00000000-0000-5000-8000-00000000000b"]


class PostHog:
    """The service: takes batches, or answers as it was told to."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b'{"status":"Ok"}'
        self.paths: list[str] = []
        self.batches: list[dict[str, Any]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.url = ""

    async def take(self, request: Request, answer: Answer) -> None:
        self.paths.append(request.path)
        self.batches.append(json.loads(request.body))
        await self.open.wait()
        answer.send(self.status, self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for batch in self.batches for event in batch["batch"]]


@pytest.fixture
async def posthog() -> AsyncIterator[PostHog]:
    service = PostHog()
    async with await serve(service.take, 0) as server:
        service.url = f"http://127.0.0.1:{port_of(server)}"
        yield service


@pytest.fixture
async def sender(posthog: PostHog) -> AsyncIterator[PostHogSender]:
    made = made_for(posthog.url)
    yield made
    posthog.open.set()
    await made.close()


def made_for(url: str, *, allow_private: bool = True) -> PostHogSender:
    transport = CheckedTransport(trusted(None), allow_private=allow_private)
    return PostHogSender(KEY, url, transport)


def event(name: str = NAMES[0], **properties: object) -> UsageEvent:
    return UsageEvent(name, WHEN, "researcher", {"provider": "openrouter"} | properties)


async def refused(sender: PostHogSender) -> str:
    """Send one event in vain; return everything that is told of it."""
    with pytest.raises(NotDelivered) as raised:
        await sender.send([event()])
    return f"{raised.value!r} {raised.value} {raised.value.__cause__!r}"


async def test_a_batch_is_delivered_as_it_is(posthog: PostHog, sender: PostHogSender) -> None:
    properties = {"cost": 0.000042, "tokens_in": 30, "tokens_out": 12, "task_id": None}
    await sender.send([event(NAMES[0], **properties), event(NAMES[1])])
    assert {path.rstrip("/") for path in posthog.paths} == {"/batch"}
    assert {batch["api_key"] for batch in posthog.batches} == {KEY}
    first, second = posthog.events
    assert [first["uuid"], second["uuid"]] == NAMES
    for each in (first, second):
        assert each["event"] == EVENT == "llm_usage"
        assert each["distinct_id"] == "researcher"
        assert datetime.fromisoformat(each["timestamp"]) == WHEN
    assert first["properties"].items() >= (properties | {"provider": "openrouter"}).items()
    assert first["properties"]["$geoip_disable"] is True


async def test_a_large_batch_arrives_whole_before_it_counts_as_sent(
    posthog: PostHog, sender: PostHogSender
) -> None:
    events = [event(f"00000000-0000-5000-8000-{number:012}") for number in range(350)]
    await sender.send(events)
    assert [found["uuid"] for found in posthog.events] == [each.uuid for each in events]


async def test_no_events_are_no_request(posthog: PostHog, sender: PostHogSender) -> None:
    await sender.send([])
    assert not posthog.batches


@pytest.mark.parametrize("status", [400, 401, 403, 408, 413, 429, 500, 502, 503, 504])
async def test_what_posthog_refuses_is_not_delivered(
    posthog: PostHog, sender: PostHogSender, status: int
) -> None:
    posthog.status, posthog.body = status, b'{"type":"error","detail":"no"}'
    await refused(sender)
    assert len(posthog.batches) == 1, "whoever sends decides when to try again"


async def test_after_a_failure_the_same_batch_can_be_sent_again(
    posthog: PostHog, sender: PostHogSender
) -> None:
    posthog.status = 503
    await refused(sender)
    posthog.status = 200
    await sender.send([event()])
    assert [found["uuid"] for found in posthog.events] == [NAMES[0]] * 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_takes_the_key_nowhere(posthog: PostHog, status: int) -> None:
    async def elsewhere(request: Request, answer: Answer) -> None:
        answer.send(status, b"", headers={"location": f"{posthog.url}/batch/"})

    async with await serve(elsewhere, 0) as server:
        sender = made_for(f"http://127.0.0.1:{port_of(server)}")
        assert f"status {status}" in await refused(sender)
        await sender.close()
    assert not posthog.paths


async def test_a_private_address_is_sent_nothing_unless_that_was_agreed(posthog: PostHog) -> None:
    sender = made_for(posthog.url, allow_private=False)
    await refused(sender)
    await sender.close()
    assert not posthog.paths


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::1", "nonsense"])
async def test_where_no_posthog_is_nothing_is_delivered(url: str) -> None:
    sender = made_for(url)
    assert KEY not in await refused(sender)
    await sender.close()


async def test_a_client_that_was_closed_delivers_nothing(
    posthog: PostHog, sender: PostHogSender
) -> None:
    await sender.close()
    with pytest.raises(NotDelivered):
        await sender.send([event()])
    assert not posthog.batches


@pytest.mark.parametrize("status", [401, 503])
async def test_the_error_does_not_hold_the_key(
    posthog: PostHog, sender: PostHogSender, status: int
) -> None:
    posthog.status = status
    posthog.body = json.dumps({"detail": f"no project has the key {KEY}"}).encode()
    assert KEY not in await refused(sender)


async def test_the_log_does_not_hold_the_key(
    posthog: PostHog, sender: PostHogSender, caplog: pytest.LogCaptureFixture
) -> None:
    posthog.status = 503
    with caplog.at_level(logging.DEBUG):
        await refused(sender)
        posthog.status = 200
        await sender.send([event()])
    assert caplog.records
    assert KEY not in caplog.text


async def test_the_log_does_not_hold_the_key_even_when_posthog_echoes_it(
    posthog: PostHog, sender: PostHogSender, caplog: pytest.LogCaptureFixture
) -> None:
    posthog.status = 401
    posthog.body = json.dumps({"detail": f"no project has the key {KEY}"}).encode()
    with caplog.at_level(logging.WARNING):
        await refused(sender)
    assert KEY not in caplog.text


async def test_what_is_answered_late_is_not_delivered_before(
    posthog: PostHog, sender: PostHogSender
) -> None:
    posthog.open.clear()
    posthog.status = 503
    sending = asyncio.create_task(sender.send([event()]))
    while not posthog.batches:
        await asyncio.sleep(0.01)
    await asyncio.wait({sending}, timeout=0.2)
    assert not sending.done()
    posthog.open.set()
    with pytest.raises(NotDelivered):
        await sending
