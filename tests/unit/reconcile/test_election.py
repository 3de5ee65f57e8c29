"""One acts, the others wait: by a Lease that changes, whatever anybody's clock says."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.connection import Connection
from llmbudget.clients.kinds import LEASES, Kind
from llmbudget.reconcile import election
from llmbudget.reconcile.election import LEASE_SECONDS, RENEW_DEADLINE, Election, LeaseLost

Manifest = dict[str, Any]
Write = Callable[[], None]


class Time:
    """A clock that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Leases(Cluster):
    """One Lease on an API server."""

    def __init__(self) -> None:
        super().__init__(Connection.in_cluster(Path("/nowhere")))
        self.lease: Manifest | None = None
        self.failing: ApiError | None = None
        self.hanging = False
        self.before_write: Write | None = None
        self.before_answer: Write | None = None
        """Called once a write is carried out."""
        self._version = 0

    async def _answer(self) -> Manifest:
        if self.hanging:
            await asyncio.Event().wait()
        if self.failing is not None:
            raise self.failing
        return copy.deepcopy(self.lease or {})

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        assert kind is LEASES
        return await self._answer() or None

    async def create(self, manifest: Manifest) -> Manifest:
        await self._answer()
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "it is there")
        self.store(manifest)
        return await self._answer()

    async def merge_patch(
        self, kind: Kind, namespace: str | None, name: str, patch: Manifest
    ) -> Manifest:
        if self.before_write is not None:
            self.before_write()
        found = await self._answer()
        if patch["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "someone was faster")
        self.store(found | {"spec": found["spec"] | patch["spec"]})
        if self.before_answer is not None:
            self.before_answer()
        return await self._answer()

    def store(self, lease: Manifest) -> None:
        self._version += 1
        self.lease = copy.deepcopy(lease)
        self.lease["metadata"]["resourceVersion"] = str(self._version)

    def written_by(self, holder: str, renewed: str = "2026-11-23T12:00:00.000000Z") -> None:
        """As another operator writes it."""
        spec = {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed}
        self.store({"metadata": {"name": "llmbudget-operator"}, "spec": spec})

    @property
    def holder(self) -> str | None:
        assert self.lease is not None
        holder: str | None = self.lease["spec"].get("holderIdentity")
        return holder


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    sleep = asyncio.sleep

    async def pass_by(seconds: float) -> None:
        made.now += seconds
        await sleep(0)

    monkeypatch.setattr(election.asyncio, "sleep", pass_by)
    return made


def candidate(leases: Leases, time: Time, name: str = "one", **more: Any) -> Election:
    return Election(leases, "llmbudget-system", name, clock=time, **more)


async def test_the_first_makes_the_lease_and_the_second_waits(time: Time) -> None:
    leases = Leases()
    await candidate(leases, time).acquire()
    assert leases.holder == "one"
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 0
    second = asyncio.create_task(candidate(leases, time, "two").acquire())
    await asyncio.sleep(1)
    assert not second.done()
    second.cancel()


@pytest.mark.parametrize("year", [1999, 2026, 2199])
async def test_a_lease_expires_by_not_changing_whatever_its_clock_said(
    time: Time, year: int
) -> None:
    leases = Leases()
    leases.written_by("dead", f"{year}-01-01T00:00:00.000000Z")
    begun = time.now
    await candidate(leases, time).acquire()
    assert leases.holder == "one"
    assert LEASE_SECONDS <= time.now - begun <= LEASE_SECONDS + 3


async def test_a_lease_that_is_renewed_is_never_taken(time: Time) -> None:
    leases = Leases()
    leases.written_by("first")
    waiting = asyncio.create_task(candidate(leases, time).acquire())
    for second in range(60):
        leases.written_by("first", f"2026-11-23T12:00:{second:02}.000000Z")
        await asyncio.sleep(1)
    assert not waiting.done()
    waiting.cancel()


async def test_the_same_name_goes_on_at_once(time: Time) -> None:
    leases = Leases()
    leases.written_by("one")
    begun = time.now
    await candidate(leases, time).acquire()
    assert time.now == begun


async def test_who_lets_go_is_followed_at_once(time: Time) -> None:
    leases = Leases()
    first, second = candidate(leases, time), candidate(leases, time, "two")
    await first.acquire()
    await first.release()
    begun = time.now
    await second.acquire()
    assert (leases.holder, time.now) == ("two", begun)
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 2, "it went by nobody"
    await first.release()
    assert leases.holder == "two", "what is another's is not let go"


async def test_only_one_of_two_that_see_it_expire_gets_it(time: Time) -> None:
    leases = Leases()
    leases.written_by("dead")

    def faster() -> None:
        leases.before_write = None
        leases.written_by("two")

    leases.before_write = faster
    waiting = asyncio.create_task(candidate(leases, time).acquire())
    while leases.before_write is not None:
        await asyncio.sleep(1)
    await asyncio.sleep(1)
    assert leases.holder == "two"
    assert not waiting.done()
    waiting.cancel()


async def test_a_leader_renews_and_says_so(time: Time) -> None:
    leases, renewals = Leases(), list[float]()
    leader = candidate(leases, time, renewed=lambda _kind, _lease: renewals.append(time.now))
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())
    while time.now < 1100:
        await asyncio.sleep(0)
    assert not holding.done()
    assert max(b - a for a, b in itertools.pairwise(renewals)) <= RENEW_DEADLINE
    holding.cancel()


@pytest.mark.parametrize("status", [0, 409, 429, 500, 503])
async def test_a_leader_outlives_a_short_outage_and_ends_before_others_may_begin(
    time: Time, status: int
) -> None:
    leases = Leases()
    leader = candidate(leases, time)
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())
    leases.failing = ApiError(status, "Trouble", "not now")
    begun = time.now
    while time.now < begun + 5:
        await asyncio.sleep(0)
    leases.failing = None
    while time.now < begun + 60:
        await asyncio.sleep(0)
    assert not holding.done()
    leases.failing, begun = ApiError(status, "Trouble", "not now"), time.now
    with pytest.raises(LeaseLost, match="could not be renewed"):
        await holding
    assert time.now - begun < LEASE_SECONDS


async def test_a_leader_that_gets_no_answer_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election, "RENEW_DEADLINE", 0.3)
    monkeypatch.setattr(election, "RETRY_SECONDS", 0.05)
    leases = Leases()
    leader = Election(leases, "llmbudget-system", "one")
    await leader.acquire()
    leases.hanging = True
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(leader.hold(), 10)


async def test_a_leader_that_another_has_replaced_ends_at_once(time: Time) -> None:
    leases = Leases()
    leader = candidate(leases, time)
    await leader.acquire()
    leases.written_by("two")
    begun = time.now
    with pytest.raises(LeaseLost, match="two"):
        await leader.hold()
    assert time.now - begun <= 5


async def test_a_leader_counts_from_when_its_first_write_was_sent(time: Time) -> None:
    """Others count from when they saw it, however late the answer was."""
    leases = Leases()
    leases.written_by("")
    written: list[float] = []

    def slowly() -> None:
        written.append(time.now)
        time.now += RENEW_DEADLINE - 1

    leases.before_answer = slowly
    leader = candidate(leases, time)
    await leader.acquire()
    leases.failing = ApiError(503, "Trouble", "not now")
    with pytest.raises(LeaseLost, match="could not be renewed"):
        await leader.hold()
    assert time.now - written[0] < LEASE_SECONDS
