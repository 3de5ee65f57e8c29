"""Overrun bench: can concurrent calls spend more than the cap?

    python -m bench.overrun.run [--only llmbudget|litellm] [--json FILE]

Each scenario goes through our gateway and through LiteLLM's proxy, one after the other, with the
same provider simulator, prices and cap. Exit code 1: our gateway passed a cap, its ledger and the
provider's bill disagree, or it used too little of a cap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
from bench.overrun.load import Outcome, Scenario, burst, fire, mixed
from bench.peers import litellm_proxy, our_gateway

from llmbudget.ledger.sqlite.schema import connect_reading
from llmbudget.local.binaries import find
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.stage import Stage

KEY: Final = "sk-bench-provider"
LATENCY_MS: Final = 50
"""As if the provider thought for a moment: concurrent calls are in flight together."""
SETTLE_SECONDS: Final = 5
"""LiteLLM adds costs up in the background; after this long they are all there."""


async def ours(scenario: Scenario, folder: Path) -> Outcome:
    """Measure our gateway on a control plane and a provider of its own."""
    plane = ControlPlane(folder / "cluster", say=_say)
    kubectl = find(lambda _: None).kubectl
    async with plane, Stage(folder / "stage", plane.kubeconfig, kubectl) as stage:
        provider, _ = await stage.provider(scenario.prices, KEY, latency_ms=LATENCY_MS)
        config = our_gateway.configuration(scenario.prices, scenario.cap, provider, callers=1)
        async with our_gateway.running(config, KEY, folder, stage) as gateway:
            started = time.monotonic()
            answers = await fire(scenario, f"{gateway.url}/v1", gateway.tokens[0])
            seconds = time.monotonic() - started
        billed, books = await _billed(provider), _recorded(gateway.ledger)
        return Outcome("LLM Budget", answers, seconds, billed, books)


async def litellm(scenario: Scenario, folder: Path) -> Outcome:
    """Measure LiteLLM with a provider of its own."""
    unused = folder / "kubeconfig"
    async with Stage(folder / "stage", unused, unused) as stage:
        provider, _ = await stage.provider(scenario.prices, KEY, latency_ms=LATENCY_MS)
        config = litellm_proxy.configuration(scenario.prices, provider, KEY, scenario.cap)
        async with litellm_proxy.running(config, folder) as (url, _):
            started = time.monotonic()
            answers = await fire(scenario, f"{url}/v1", litellm_proxy.MASTER_KEY)
            seconds = time.monotonic() - started
            await asyncio.sleep(SETTLE_SECONDS)
            billed, books = await _billed(provider), await litellm_proxy.recorded(url)
        return Outcome(f"LiteLLM {litellm_proxy.VERSION}", answers, seconds, billed, books)


async def _billed(provider: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        bill = (await client.get(f"{provider.removesuffix('/v1')}/bill")).json()
    return int(bill["nano"])


def _recorded(ledger: Path) -> int:
    connection = connect_reading(ledger)
    try:
        return int(next(connection.execute("SELECT coalesce(sum(cost), 0) FROM entries"))[0])
    finally:
        connection.close()


def usd(nano: int) -> str:
    """Write nano-USD with all nine decimals."""
    return f"${nano // 10**9}.{nano % 10**9:09d}"


def table(scenario: Scenario, outcomes: list[Outcome]) -> Iterator[str]:
    """Lay the outcomes side by side."""
    yield f"{scenario.title}; all calls together are worth {usd(scenario.worth)}"
    yield f"  {'':<18}{'cap':>16}{'billed':>16}{'of the cap':>12}{'own books':>16}  answers"
    for outcome in outcomes:
        share = f"{outcome.billed * 1000 // scenario.cap / 10:.1f}%"
        answers = ", ".join(f"{count} × {code}" for code, count in sorted(outcome.answers.items()))
        yield (
            f"  {outcome.gateway:<18}{usd(scenario.cap):>16}{usd(outcome.billed):>16}{share:>12}"
            f"{usd(outcome.recorded):>16}  {answers} in {outcome.seconds:.1f} s"
        )


def faults(scenario: Scenario, outcome: Outcome) -> Iterator[str]:
    """Tell what our gateway must not do."""
    if outcome.billed > scenario.cap:
        yield f"{scenario.name}: the cap was passed by {usd(outcome.billed - scenario.cap)}"
    if outcome.billed != outcome.recorded:
        yield f"{scenario.name}: bill {usd(outcome.billed)}, ledger {usd(outcome.recorded)}"
    if outcome.billed * 100 < scenario.cap * scenario.full:
        yield f"{scenario.name}: less than {scenario.full}% of the cap was used"


async def measure(only: str | None) -> tuple[list[str], list[dict[str, object]]]:
    """Run and print everything; return what is wrong, and the figures."""
    wrong: list[str] = []
    results: list[dict[str, object]] = []
    for scenario in (burst(), mixed()):
        outcomes = []
        for gateway, run in (("llmbudget", ours), ("litellm", litellm)):
            if only in (None, gateway):
                with tempfile.TemporaryDirectory(prefix="overrun-") as folder:
                    outcomes.append(await run(scenario, Path(folder)))
                results.append({"scenario": scenario.name, **_row(scenario, outcomes[-1])})
                if gateway == "llmbudget":
                    wrong += faults(scenario, outcomes[-1])
        print("\n".join(table(scenario, outcomes)), end="\n\n", flush=True)
    return wrong, results


def _row(scenario: Scenario, outcome: Outcome) -> dict[str, object]:
    return {
        "gateway": outcome.gateway,
        "capNano": scenario.cap,
        "billedNano": outcome.billed,
        "recordedNano": outcome.recorded,
        "answers": dict(outcome.answers),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Overrun bench")
    parser.add_argument("--only", choices=("llmbudget", "litellm"))
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    try:
        wrong, results = asyncio.run(measure(options.only))
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    for fault in wrong:
        print(f"FAULT {fault}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
