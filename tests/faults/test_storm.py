"""A storm over fifteen gateways on one PostgreSQL: whatever breaks, the books agree afterwards."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from pathlib import Path

import pytest
from tests.support.audits import assert_sound
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
        patient = {"connect_timeout_ms": 20_000, "idle_timeout_ms": 20_000}
        sim = provider("sim", simulator.port, **patient)
        await first.configure(config(namespace, (found,), (sim,), ledger="postgres"))
        storm = Storm(plan, databases, first, await first.token())
        try:
            await storm.run()
            # Who was killed last is charged by those that live, after the lease is over.
            entries = await databases.ledger.entries(120)
        finally:
            storm.stop()
        databases.ledger.check_sums()
        assert_sound(databases.ledger.file)
        databases.ledger.file.unlink()  # Its server ends with this test.
        rows = [json.loads(line) for line in simulator.bill_file.read_text().splitlines()]
        compare(plan, storm.seen, entries, Counter(tuple(row.values()) for row in rows))
    finally:
        simulator.stop()
        databases.stop()


def compare(
    plan: Plan, seen: Seen, entries: list[Entry], bill: Counter[tuple[str, int, int, int]]
) -> None:
    """Lay the provider's bill beside the ledger."""
    print(
        f"{seen.codes} {len(entries)} rows, {seen.kills} kills, {seen.cuts} cuts, "
        f"{seen.toxics} toxics, {seen.reasons}",
        *seen.log,
    )
    metered = Counter(
        (entry.model, entry.tokens_in, entry.tokens_out, int(entry.cost))
        for entry in entries
        if entry.outcome is Outcome.METERED
    )
    unknown = [entry for entry in entries if entry.outcome is Outcome.UNKNOWN]
    assert unknown, "no call was under way when a gateway was killed"
    assert metered <= bill, "what is metered was billed, to the token"
    rest = bill - metered
    check_unknown(rest, unknown)
    billed, charged = (sum(key[3] * n for key, n in found.items()) for found in (bill, metered))
    doubt = sum(entry.cost for entry in unknown)
    assert sum(entry.cost for entry in entries) == charged + doubt, "released calls cost nothing"
    assert charged <= billed <= charged + doubt, "the ledger and the bill differ by unknown rows"
    assert len({entry.id for entry in entries}) == len(entries)
    for period in sorted({entry.period for entry in entries}):
        # Each billed call has a row here that costs as much at least: so is the month's bill.
        spent = sum(entry.cost for entry in entries if entry.period == period)
        assert plan.cap * 9 // 10 <= spent <= plan.cap, "I1"
    assert len({entry.period for entry in entries}) == 3
    # 502: on a machine that is too small for it, the provider took longer than its timeout.
    assert set(seen.codes) <= {200, 402, 429, 502, 503}, seen.codes
    check_refusals(plan, seen, entries)


def check_unknown(rest: Counter[tuple[str, int, int, int]], unknown: list[Entry]) -> None:
    """I2: each billed call that is not metered has an unknown row of its own, which covers it."""
    for model in {key[0] for key in rest} | {entry.model for entry in unknown}:
        billed = sorted((key[3] for key in rest.elements() if key[0] == model), reverse=True)
        covers = sorted((entry.cost for entry in unknown if entry.model == model), reverse=True)
        assert len(billed) <= len(covers), model
        assert all(one <= other for one, other in zip(billed, covers, strict=False)), model


def instants(rows: list[Entry]) -> list[float]:
    """Tell when rows were there, which are in the order in which they were committed: not after
    any that follows, also where a transaction took its time while the clock was put back."""
    found: list[float] = []
    latest = float("inf")
    for row in reversed(rows):
        latest = min(latest, row.ts.timestamp())
        found.append(latest)
    return found[::-1]


def check_refusals(plan: Plan, seen: Seen, entries: list[Entry]) -> None:
    """Nobody was told that the money is gone while there was enough of it: what had been spent by
    then, and in the two seconds in which the answer was under way, left less than was asked."""
    assert seen.refused, "the money was never gone"
    assert len(seen.eras) == 3
    rows, spent = sorted(entries, key=lambda entry: entry.seq), Counter[str]()
    first = 0
    for era, last in enumerate([*seen.eras, rows[-1].seq]):
        # By the clock only until it was moved: what it showed before, it may show once more.
        within = [row for row in rows if first < row.seq <= last]
        waiting = deque(zip(within, instants(within), strict=True))
        refusals = [refused for refused in seen.refused if refused.era == era]
        for refused in sorted(refusals, key=lambda refused: refused.at):
            while waiting and waiting[0][1] <= refused.at + 2:
                row, _ = waiting.popleft()
                spent[row.period] += row.cost
            assert refused.left < refused.asked
            assert plan.cap - spent[max(spent)] < refused.asked, refused
        for row, _ in waiting:
            spent[row.period] += row.cost
        first = last
