"""A storm over fifteen gateways on one PostgreSQL: whatever breaks, the books agree afterwards."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from tests.support.gateway_process import GatewayProcess, Simulator, account, config, provider
from tests.support.storm import Databases, Plan, Seen, Storm

from llmbudget.clients.cluster import Cluster
from llmbudget.ledger.interface import Entry, Outcome

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("STORM" not in os.environ, reason="takes minutes: run by `make storm`"),
]


@pytest.fixture
def plan(request: pytest.FixtureRequest) -> Plan:
    """Short, or as long and with as many callers as `make storm` wants."""
    if not request.config.getoption("--storm"):
        return Plan(callers=150, kill_seconds=2.0)
    return Plan(callers=1000, cap=2_000_000_000, patience_seconds=900)


async def test_the_books_agree_after_a_storm(
    cluster: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path, plan: Plan
) -> None:
    simulator = Simulator(tmp_path, latency_ms="20")
    databases = Databases(tmp_path)
    try:
        await simulator.ready()
        first = GatewayProcess(cluster, kubeconfig, namespace, tmp_path)
        await first.prepare()
        found = account(namespace, plan.cap, ladder=())
        sim = provider("sim", simulator.port)
        await first.configure(config(namespace, (found,), (sim,), ledger="postgres"))
        storm = Storm(plan, databases, first, await first.token())
        try:
            await storm.run()
            # Who was killed last is charged by those that live, after the lease is over.
            entries = await databases.ledger.entries(120)
        finally:
            storm.stop()
        databases.ledger.check_sums()
        rows = [json.loads(line) for line in simulator.bill_file.read_text().splitlines()]
        compare(plan, storm.seen, entries, Counter(tuple(row.values()) for row in rows))
    finally:
        simulator.stop()
        databases.stop()


def compare(
    plan: Plan, seen: Seen, entries: list[Entry], bill: Counter[tuple[str, int, int, int]]
) -> None:
    """Lay the provider's bill beside the ledger."""
    print(f"{seen.codes} {len(entries)} rows, {seen.kills} kills, {seen.cuts} cuts", *seen.log)
    metered = Counter(
        (entry.model, entry.tokens_in, entry.tokens_out, int(entry.cost))
        for entry in entries
        if entry.outcome is Outcome.METERED
    )
    unknown = [entry for entry in entries if entry.outcome is Outcome.UNKNOWN]
    assert unknown, "no call was under way when a gateway was killed"
    assert metered <= bill, "what is metered was billed, to the token"
    rest = bill - metered
    assert rest.total() <= len(unknown), "I2: what was billed has a row"
    billed, charged = sum(key[3] * n for key, n in bill.items()), sum(e.cost for e in entries)
    assert 0 <= charged - billed <= sum(entry.cost for entry in unknown)
    assert len({entry.id for entry in entries}) == len(entries)
    for period in sorted({entry.period for entry in entries}):
        spent = sum(entry.cost for entry in entries if entry.period == period)
        assert plan.cap * 9 // 10 <= spent <= plan.cap, "I1"
    assert len({entry.period for entry in entries}) == 3
    assert set(seen.codes) <= {200, 402, 429, 503}, seen.codes
    check_refusals(plan, seen, entries)


def check_refusals(plan: Plan, seen: Seen, entries: list[Entry]) -> None:
    """Nobody was told that the money is gone while there was enough of it: what had been spent by
    then, and in the two seconds in which the answer was under way, left less than was asked."""
    assert seen.refused, "the money was never gone"
    for refused in seen.refused[:: max(1, len(seen.refused) // 200)]:
        assert refused.left < refused.asked
        by_then = [entry for entry in entries if entry.ts.timestamp() <= refused.at + 2]
        period = max(entry.period for entry in by_then)
        spent = sum(entry.cost for entry in by_then if entry.period == period)
        assert plan.cap - spent < refused.asked, refused
