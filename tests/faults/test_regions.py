"""Four regions on one machine: slow links to the budget's database, one of them cut, a gateway
killed, and callers everywhere until the money is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from tests.support.audits import assert_sound
from tests.support.cutting_proxy import CuttingProxy
from tests.support.gateway_process import (
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    provider,
)
from tests.support.postgres_server import PostgresServer
from tests.support.shared_ledger import SharedLedger, start_all

from llmbudget.clients.cluster import Cluster

pytestmark = pytest.mark.cluster

CAP = USD // 50
"""Worth about 300 of the calls below."""
LATENCY = {"us-east": 0.002, "us-west": 0.03, "eu-central": 0.04, "ap-southeast": 0.08}
"""Seconds to the budget's database, and as many back."""
CALLERS = 4
"""In each region."""
CUT_OFF, KILLED = "ap-southeast", "eu-central"


@dataclass
class Region:
    """A region's gateways, its database and its link to the budget's."""

    name: str
    ledger: SharedLedger
    link: CuttingProxy
    gateways: list[GatewayProcess]
    codes: Counter[int] = field(default_factory=Counter)

    def figures(self) -> dict[str, int]:
        """What its own ledger says of it."""
        names = ("spent", "held", "granted", "returned")
        rows = self.ledger.query(f"SELECT {', '.join(names)} FROM account_periods")
        return dict(zip(names, rows[0] if rows else (0, 0, 0, 0), strict=True))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """All databases, until their ledgers were audited. It flushes nothing to its disk, since no
    power is lost here."""
    made = PostgresServer(("fsync=off", "full_page_writes=off"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def authority(server: PostgresServer, tmp_path: Path) -> SharedLedger:
    return SharedLedger(server, tmp_path)


@pytest.fixture
async def regions(
    cluster: Cluster,
    kubeconfig: Path,
    namespace: str,
    tmp_path: Path,
    simulator: Simulator,
    server: PostgresServer,
    authority: SharedLedger,
) -> AsyncIterator[dict[str, Region]]:
    """A gateway a region, two in the one that loses one, configured and ready."""
    first = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    await first.prepare()
    found, sim = account(namespace, CAP), provider("sim", simulator.port)
    await first.configure(config(namespace, (found,), (sim,), ledger="postgres"))
    made: dict[str, Region] = {}
    for name, latency in LATENCY.items():
        folder = tmp_path / name
        folder.mkdir()
        ledger, link = SharedLedger(server, folder), CuttingProxy(server.port)
        link.delay = latency
        file = folder / "authority"
        file.write_text(server.url(user=authority.name, schema=authority.name, port=link.port))
        gateways = [first.beside() for _ in range(2 if name == KILLED else 1)]
        for gateway in gateways:
            gateway.region, gateway.region_postgres, gateway.postgres = name, ledger.file, file
        made[name] = Region(name, ledger, link, gateways)
    await start_all([each for region in made.values() for each in region.gateways], 120)
    yield made
    for region in made.values():
        for gateway in region.gateways:
            if gateway.process is not None and gateway.process.poll() is None:
                gateway.process.kill()
                gateway.process.wait()
        region.link.close()


async def call_on(region: Region, token: str, number: int, calm: asyncio.Event) -> None:
    """Call until the money is gone; whatever is refused for now is asked for again."""
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        while True:
            gateway = region.gateways[number % len(region.gateways)]
            try:
                answer = await client.post(
                    f"{gateway.url}/v1/chat/completions",
                    json=body(words=50 + number),
                    headers=headers,
                )
            except httpx.HTTPError:
                region.codes[0] += 1
                number += 1  # The other gateway of the region.
                continue
            region.codes[answer.status_code] += 1
            if answer.status_code == 402 and calm.is_set():
                return
            if answer.status_code != 200:
                await asyncio.sleep(0.2)


async def until(what: str, true: Callable[[], bool], seconds: float = 60) -> None:
    for _ in range(int(seconds * 10)):
        if true():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"it never came to pass that {what}")


async def test_four_regions_spend_one_cap_while_links_and_gateways_fail(
    regions: dict[str, Region], authority: SharedLedger, simulator: Simulator
) -> None:
    cut, hit = regions[CUT_OFF], regions[KILLED]
    token = await hit.gateways[0].token()
    calm = asyncio.Event()

    def share() -> float:
        rows = authority.query("SELECT spent + overage FROM account_periods")
        return rows[0][0] / CAP if rows else 0.0

    calling = [
        asyncio.create_task(call_on(region, token, number, calm))
        for region in regions.values()
        for number in range(CALLERS)
    ]
    try:
        await until("a fifth is spent", lambda: share() > 0.2)
        cut.link.part()
        # It spends what it was given, and no more: then its calls are refused with 503.
        await until("the region is cut off", lambda: cut.codes[503] > 0)
        given = cut.figures()
        assert given["spent"] + given["held"] <= given["granted"] - given["returned"]
        before = cut.codes[200]
        hit.gateways[0].kill()
        # What it holds is in the others' way: they wait for it, and are told so.
        await until("the others spend the rest", lambda: regions["us-east"].codes[429] > 0)
        assert not cut.codes[402] + cut.codes[429]
        assert cut.codes[200] - before <= 1
        calm.set()
        cut.link.heal()
        await asyncio.wait_for(asyncio.gather(*calling), 120)
    finally:
        for task in calling:
            task.cancel()
        await asyncio.gather(*calling, return_exceptions=True)
    await settle_up(regions, authority)
    rows = authority.query("SELECT id, cost, held, outcome, provider FROM entries")
    bill = await simulator.bill()
    metered = sum(cost for _, cost, _, outcome, _ in rows if outcome == "metered")
    unknown = sum(cost for _, cost, _, outcome, _ in rows if outcome == "unknown")
    assert metered <= bill["nano"] <= metered + unknown <= CAP
    assert bill["nano"] >= CAP * 85 // 100
    # One row a call, in its region as at the authority.
    ids = "SELECT id FROM entries"
    own = [id for region in regions.values() for (id,) in region.ledger.query(ids)]
    assert sorted(own) == sorted(row[0] for row in rows)
    assert len(own) == len(set(own))
    assert all(region.codes[200] > 0 for region in regions.values())


async def settle_up(regions: dict[str, Region], authority: SharedLedger) -> None:
    """End all gateways in order, and see that nothing is left anywhere."""
    for region in regions.values():
        for gateway in region.gateways:
            if gateway.process is not None and gateway.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    gateway.process.terminate()
    codes = await asyncio.gather(
        *(
            asyncio.to_thread(gateway.process.wait, 60)
            for region in regions.values()
            for gateway in region.gateways
            if gateway.process is not None
        )
    )
    assert sorted(set(codes)) == [-9, 0]
    for region in regions.values():
        assert region.ledger.query("SELECT count(*) FROM holds") == [(0,)], region.name
        assert_sound(region.ledger.file)
    assert authority.query("SELECT sum(held) FROM account_periods") == [(0,)]
    assert_sound(authority.file)
