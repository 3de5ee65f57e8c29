"""Gateways that share a PostgreSQL ledger: one cap for all, and what becomes of calls without the
database."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from tests.support.gateway_process import (
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    events,
    post,
    provider,
)
from tests.support.postgres_server import PASSWORD, PostgresServer
from tests.support.shared_ledger import SharedLedger, start_all

from llmbudget.clients.cluster import Cluster
from llmbudget.ledger.interface import Outcome

pytestmark = pytest.mark.cluster
CAP = USD // 200
"""Worth about 80 of the calls below."""
CALLERS = 20
Start = Callable[..., object]


@pytest.fixture
def ledger(postgres: PostgresServer, tmp_path: Path) -> SharedLedger:
    return SharedLedger(postgres, tmp_path)


@pytest.fixture
async def first(
    cluster: Cluster,
    kubeconfig: Path,
    namespace: str,
    tmp_path: Path,
    simulator: Simulator,
    ledger: SharedLedger,
) -> AsyncIterator[GatewayProcess]:
    """The first of several gateways, configured and not started; it is stopped afterwards."""
    gateway = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
    gateway.postgres = ledger.file
    await gateway.prepare()
    found = account(namespace, CAP)
    sim = provider("sim", simulator.port)
    await gateway.configure(config(namespace, (found,), (sim,), ledger="postgres"))
    yield gateway
    if gateway.process is not None and gateway.process.poll() is None:
        assert gateway.stop() == 0
    assert PASSWORD not in gateway.log.read_text()


async def spend_all(gateways: list[GatewayProcess], token: str) -> Counter[int]:
    """Call through all gateways at once until each caller is told that the money is gone."""
    codes: Counter[int] = Counter()

    async def call(number: int) -> None:
        url = gateways[number % len(gateways)].url
        async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=url) as client:
            while True:
                answer = await client.post(
                    "/v1/chat/completions",
                    json=body(words=50 + number),
                    headers={"authorization": f"Bearer {token}"},
                )
                codes[answer.status_code] += 1
                if answer.status_code == 402:
                    return

    await asyncio.gather(*(call(number) for number in range(CALLERS)))
    return codes


@pytest.mark.parametrize("count", [2, 5])
async def test_gateways_spend_one_cap(
    first: GatewayProcess, ledger: SharedLedger, simulator: Simulator, count: int
) -> None:
    gateways = [first, *(first.beside() for _ in range(count - 1))]
    try:
        await start_all(gateways)
        codes = await spend_all(gateways, await first.token())
        assert set(codes) <= {200, 402, 429}
        entries, bill = await ledger.entries(), await simulator.bill()
        assert (bill["nano"], bill["calls"]) == (sum(e.cost for e in entries), codes[200])
        assert CAP * 9 // 10 <= bill["nano"] <= CAP
        assert {entry.outcome for entry in entries} == {Outcome.METERED}
        ledger.check_sums()
        owners = ledger.query("SELECT count(*) FROM owners WHERE commits > 1")
        assert owners == [(count,)]
    finally:
        for gateway in gateways[1:]:
            assert gateway.stop() == 0


async def test_a_killed_gateways_calls_are_charged_by_another(
    first: GatewayProcess, ledger: SharedLedger, simulator: Simulator
) -> None:
    second = first.beside()
    await start_all([first, second])
    token = await first.token()
    hanging = [asyncio.create_task(post(second, body("small@hang"), token)) for _ in range(5)]
    while ledger.query("SELECT count(*) FROM holds") != [(5,)]:
        await asyncio.sleep(0.05)
    second.kill()
    await asyncio.gather(*hanging, return_exceptions=True)
    assert (await post(first, body(), token)).status_code == 200
    entries = await ledger.entries()
    unknown = [entry for entry in entries if entry.outcome is Outcome.UNKNOWN]
    assert len(unknown) == 5
    assert all(entry.cost == entry.held for entry in unknown), "I2"
    assert sum(entry.cost for entry in entries) >= (await simulator.bill())["nano"]
    ledger.check_sums()


async def until_said(gateway: GatewayProcess, problem: str | None) -> None:
    """Follow a gateway's stream until it says that it can't, or can again, count money."""
    token = await gateway.operators_token()

    def agrees(said: str | None) -> bool:
        return said is None if problem is None else problem in (said or "")

    async with asyncio.timeout(40):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                async for name, event in events(gateway, token):
                    if name == "ledger" and agrees(event["problem"]):
                        return
            await asyncio.sleep(0.1)


async def readiness(gateway: GatewayProcess) -> tuple[int, str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{gateway.url}/readyz")
        return answer.status_code, json.loads(answer.text)["status"]


AWAY = (503, "The gateway can't count money now: its ledger is away.")


async def test_a_database_that_is_away_at_the_start_and_later(
    first: GatewayProcess, tmp_path: Path, simulator: Simulator
) -> None:
    server = PostgresServer()
    try:
        own = tmp_path / "own"
        own.mkdir()
        server.start()
        ledger = SharedLedger(server, own)
        server.kill()
        first.postgres = ledger.file
        first.start()
        await until_said(first, "Connection refused")
        assert await readiness(first) == AWAY
        assert (await post(first, body())).status_code == 503
        server.start()
        await first.ready()
        await until_said(first, None)
        assert (await post(first, body())).status_code == 200
        server.kill()
        refused = await post(first, body())
        assert refused.status_code == 503, "before anybody knew"
        await until_said(first, "Connection refused")
        assert await readiness(first) == AWAY
        server.start()
        await first.ready()
        assert (await post(first, body())).status_code == 200
        entries, bill = await ledger.entries(), await simulator.bill()
        assert sum(entry.cost for entry in entries) == bill["nano"]
        assert bill["calls"] == 2
        assert first.stop() == 0
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda url: url.replace(PASSWORD, PASSWORD + "x"), "password authentication failed"),
        (lambda url: f"{PASSWORD}@db", "no connection string: write postgresql://"),
    ],
)
async def test_a_wrong_connection_string_is_told_and_mended_without_a_restart(
    first: GatewayProcess,
    ledger: SharedLedger,
    change: Callable[[str], str],
    problem: str,
) -> None:
    ledger.file.write_text(change(ledger.url))
    first.start()
    await until_said(first, problem)
    assert await readiness(first) == AWAY
    ledger.file.write_text(ledger.url)
    await first.ready()
    assert (await post(first, body())).status_code == 200


async def test_tables_of_a_newer_version_and_a_standby(
    first: GatewayProcess, ledger: SharedLedger
) -> None:
    first.start()
    await first.ready()
    ledger.query("UPDATE ledger SET requires = 999")
    assert (await post(first, body())).status_code == 503
    await until_said(first, "newer version")
    assert await readiness(first) == AWAY
    ledger.query("UPDATE ledger SET requires = 1")
    await first.ready()
    role = ledger.name
    ledger.server.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    ledger.server.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
    )
    await until_said(first, "this is a standby: name the primary")
    assert await readiness(first) == AWAY
    ledger.server.execute(f"ALTER ROLE {role} RESET default_transaction_read_only")
    await first.ready()
    assert (await post(first, body())).status_code == 200
