"""Whose token it is: asked once, believed for ten seconds, and floods held off."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from llmbudget.clients.cluster import ApiError, Cluster, TokenIdentity
from llmbudget.gateway import identity as module
from llmbudget.gateway.identity import CACHE_SECONDS, Identities
from llmbudget.gateway.protocols.errors import Refusal

AUDIENCE = "llmbudget"
APP = "10.0.0.1"
START = 1000.0


class Reviewer:
    """The API server: knows tokens that begin with `good`."""

    def __init__(self) -> None:
        self.now = START
        self.asked: list[str] = []
        self.takes = 0.0
        self.away = False
        self.open = asyncio.Event()
        self.open.set()

    async def review_token(self, token: str, audience: str | None) -> TokenIdentity | None:
        assert audience == AUDIENCE
        self.asked.append(token)
        self.now += self.takes
        await asyncio.sleep(0)
        await self.open.wait()
        if self.away:
            raise ApiError(0, "ClientConnectorError", "the API server can't be reached")
        if not token.startswith("good"):
            return None
        return TokenIdentity(f"system:serviceaccount:ns:{token}", (), (AUDIENCE,))


@pytest.fixture
async def reviewer() -> Reviewer:
    return Reviewer()


@pytest.fixture
def identities(reviewer: Reviewer) -> Identities:
    return Identities(cast(Cluster, reviewer), AUDIENCE, lambda: reviewer.now)


async def status(identities: Identities, token: str, client: str = APP) -> int:
    """Identify; return the status of the refusal, or 200."""
    try:
        identity = await identities.identify(token, client)
    except Refusal as refusal:
        return refusal.status
    assert identity.service_account == ("ns", token)
    return 200


async def statuses(identities: Identities, tokens: list[str], client: str = APP) -> list[int]:
    """Identify all at once."""
    return await asyncio.gather(*(status(identities, token, client) for token in tokens))


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("takes", "later", "reviews"),
    [
        (0.0, 0.0, 1),
        (0.0, CACHE_SECONDS - 0.001, 1),
        (0.0, CACHE_SECONDS, 2),
        (4.0, CACHE_SECONDS - 4.001, 1),
        (4.0, CACHE_SECONDS - 4.0, 2),
        (CACHE_SECONDS, 0.0, 2),
    ],
)
async def test_an_answer_holds_ten_seconds_from_when_it_was_asked_for(
    identities: Identities, reviewer: Reviewer, takes: float, later: float, reviews: int
) -> None:
    reviewer.takes = takes
    assert await status(identities, "good") == 200
    reviewer.now += later
    assert await status(identities, "good") == 200
    assert len(reviewer.asked) == reviews


async def test_a_refusal_is_not_kept(identities: Identities, reviewer: Reviewer) -> None:
    with pytest.raises(Refusal, match="for the audience llmbudget") as refused:
        await identities.identify("bad", APP)
    assert (refused.value.status, refused.value.retry_after) == (401, None)
    assert await status(identities, "bad") == 401
    assert reviewer.asked == ["bad", "bad"]


async def test_without_an_api_server_nobody_is_identified(
    identities: Identities, reviewer: Reviewer
) -> None:
    reviewer.away = True
    with pytest.raises(Refusal, match="can't review tokens") as refused:
        await identities.identify("good", APP)
    assert refused.value.status == 503
    assert refused.value.retry_after
    reviewer.away = False
    assert await status(identities, "good") == 200


async def test_an_outage_is_no_flood(identities: Identities, reviewer: Reviewer) -> None:
    reviewer.away = True
    assert [await status(identities, f"good{n}") for n in range(100)] == [503] * 100


async def test_an_outage_does_not_prolong_an_answer(
    identities: Identities, reviewer: Reviewer
) -> None:
    await identities.identify("good", APP)
    reviewer.away = True
    assert await status(identities, "good") == 200
    reviewer.now += CACHE_SECONDS
    assert await status(identities, "good") == 503


async def test_an_api_server_that_hangs_is_not_waited_for(
    identities: Identities, reviewer: Reviewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REVIEW_SECONDS", 0.01)
    reviewer.open.clear()
    assert await status(identities, "good") == 503
    reviewer.open.set()
    await settle()
    assert await status(identities, "good") == 200
    assert len(reviewer.asked) == 1, "its late answer is an answer"


@pytest.mark.parametrize(("token", "answer"), [("good", 200), ("bad", 401)])
async def test_a_crowd_with_one_token_is_one_review(
    identities: Identities, reviewer: Reviewer, token: str, answer: int
) -> None:
    assert await statuses(identities, [token, "other"] * 500) == [answer, 401] * 500
    assert reviewer.asked == [token, "other"]


@pytest.mark.parametrize("leaving", [0, 1, 2])
async def test_a_caller_that_leaves_takes_nobody_along(
    identities: Identities, reviewer: Reviewer, leaving: int
) -> None:
    reviewer.open.clear()
    callers = [asyncio.create_task(status(identities, "good")) for _ in range(3)]
    await settle()
    callers[leaving].cancel()
    await settle()
    reviewer.open.set()
    found = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(found.pop(leaving), asyncio.CancelledError)
    assert found == [200, 200]
    assert len(reviewer.asked) == 1


async def test_a_review_that_was_asked_for_long_ago_is_not_joined(
    identities: Identities, reviewer: Reviewer
) -> None:
    reviewer.open.clear()
    first = asyncio.create_task(status(identities, "good"))
    await settle()
    reviewer.now += 2 * CACHE_SECONDS
    late = asyncio.create_task(status(identities, "good"))
    await settle()
    reviewer.open.set()
    await asyncio.gather(first, late)
    assert len(reviewer.asked) == 2


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_flood_of_bad_tokens_does_not_reach_the_api_server(
    identities: Identities, reviewer: Reviewer, at_once: bool
) -> None:
    tokens = [f"bad{number}" for number in range(100)]
    if at_once:
        answers = await statuses(identities, tokens)
    else:
        answers = [await status(identities, token) for token in tokens]
    assert answers == [401] * 60 + [429] * 40
    assert len(reviewer.asked) == 60
    assert await status(identities, "bad", "10.0.0.2") == 401, "another address"


async def test_whoever_is_held_off_is_told_until_when(
    identities: Identities, reviewer: Reviewer
) -> None:
    await identities.identify("good", APP)
    await statuses(identities, [f"bad{number}" for number in range(60)])
    with pytest.raises(Refusal) as refused:
        await identities.identify("good2", APP)
    assert refused.value.status == 429
    assert refused.value.retry_after
    assert await status(identities, "good") == 200, "known already"
    reviewer.now += refused.value.retry_after
    assert await status(identities, "good2") == 200
    assert len(reviewer.asked) == 62


async def test_good_tokens_are_no_flood(identities: Identities, reviewer: Reviewer) -> None:
    assert [await status(identities, f"good{n}") for n in range(300)] == [200] * 300


@pytest.mark.parametrize("token", ["x" * 8193, "göod", "good\udc80"])
async def test_what_can_be_no_token_is_not_reviewed(
    identities: Identities, reviewer: Reviewer, token: str
) -> None:
    assert await status(identities, token) == 400
    assert not reviewer.asked


async def test_the_cache_is_bounded_and_what_has_expired_goes_first(
    identities: Identities, reviewer: Reviewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_CACHED", 5)
    for number in range(4):
        await identities.identify(f"good{number}", APP)
    reviewer.now += CACHE_SECONDS - 1
    await identities.identify("good-fresh", APP)
    reviewer.now += 1
    await identities.identify("good-new", APP)
    assert len(identities._known) == 2
    for number in range(20):
        await identities.identify(f"good{number}", APP)
        assert len(identities._known) <= 5


async def test_no_token_is_kept(identities: Identities) -> None:
    await identities.identify("good-and-secret-token", APP)
    await status(identities, "bad-and-secret-token")
    kept = [*identities._known, *identities._under_way]
    assert kept
    assert not any(b"secret" in key for key in kept)
