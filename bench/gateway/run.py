"""Gateway bench: what does enforcement cost on the wire?

    python -m bench.gateway.run [--rounds N] [--seconds S] [--only CASE ...] [--json FILE]

The same nginx, which answers every call at once with one completion, behind three proxies in the
same run: nginx as a plain proxy, one worker (the limit); this gateway with everything on: identity,
hold, durable ledger, metering, metrics; LiteLLM's proxy (the usual choice). wrk sends chat
completions on one thread. Peers take turns, several rounds each, since these machines are noisy:
the ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.gateway.wrk import measure
from bench.peers import litellm_proxy, nginx, our_gateway
from bench.report import Peer, Target, line, ratio, say

from llmbudget.ledger.sqlite.schema import connect_reading
from llmbudget.local.binaries import find
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.stage import Stage

KEY: Final = "sk-bench-provider-0123456789abcdef"
PRICES: Final = {"bench": {"inputPer1K": "0.0006", "outputPer1K": "0.0006"}}
CAP: Final = 10**15
"""A million USD: nothing is refused."""
OURS: Final = "LLM Budget"
LIMIT: Final = "nginx"
LITELLM: Final = f"LiteLLM {litellm_proxy.VERSION}"
DIRECT: Final = "no proxy"

OF_LIMIT: Final = 0.25
OF_LIMIT_STRETCHED: Final = 0.4
TIMES_LITELLM: Final = 60
ADDED: Final = {"median_ms": 0.5, "p99_ms": 2.0}


@dataclass(frozen=True)
class Case:
    """One table of the report."""

    name: str
    title: str
    connections: int
    callers: int = 1
    tls: bool = False
    litellm: bool = False


CASES: Final = (
    Case("one", "1 connection: what a call waits longer", 1, litellm=True),
    Case("many", "32 connections: how many calls a second", 32, litellm=True),
    Case("crowd", "256 connections", 256),
    Case("tls", "32 connections, TLS", 32, tls=True),
    Case("callers", "32 connections, 1,000 identities in turn", 32, callers=1000),
)


async def run(case: Case, rounds: int, seconds: int, folder: Path) -> list[Peer]:
    """Measure all peers of a case in turn.

    Raises:
        SystemExit: a call was refused, or the ledger has not one row a call.
    """
    plane = ControlPlane(folder / "cluster", say=say)
    kubectl = find(lambda _: None).kubectl
    tls = _certificate(folder) if case.tls else None
    async with (
        plane,
        Stage(folder / "stage", plane.kubeconfig, kubectl) as stage,
        nginx.upstream(folder) as port,
        nginx.proxy(folder, port, tls) as limit,
    ):
        provider = f"http://127.0.0.1:{port}/v1"
        config = our_gateway.configuration(PRICES, CAP, provider, case.callers)
        async with our_gateway.running(
            config, KEY, folder, stage, callers=case.callers, tls=tls
        ) as gateway:
            ours = Peer(OURS, gateway.url, gateway.tokens)
            peers = [Peer(LIMIT, limit, ["-"]), ours]
            if not case.tls:
                peers.append(Peer(DIRECT, f"http://127.0.0.1:{port}", ["-"]))
            async with _litellm(case, provider, folder) as others:
                await _take_turns(case, [*peers, *others], rounds, seconds, folder)
        _check(ours, gateway.ledger)
    return [*peers, *others]


async def _take_turns(
    case: Case, peers: list[Peer], rounds: int, seconds: int, folder: Path
) -> None:
    for number in range(rounds + 1):
        say(f"{case.name}: round {number} of {rounds}" if number else f"{case.name}: warming up")
        for peer in peers:
            load = await measure(
                peer.url,
                peer.tokens,
                connections=case.connections,
                seconds=seconds,
                folder=folder,
            )
            peer.loads.append(load)


@contextlib.asynccontextmanager
async def _litellm(case: Case, provider: str, folder: Path) -> AsyncIterator[list[Peer]]:
    if not case.litellm:
        yield []
        return
    config = litellm_proxy.configuration(PRICES, provider, KEY, None)
    async with litellm_proxy.running(config, folder) as (url, _):
        yield [Peer(LITELLM, url, [litellm_proxy.MASTER_KEY])]


def _certificate(folder: Path) -> Path:
    """Make a certificate that both proxies serve."""
    tls = folder / "tls"
    tls.mkdir()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-keyout", tls / "tls.key", "-out", tls / "tls.crt"),
        ],
        check=True,
        capture_output=True,
    )
    return tls


def _check(ours: Peer, ledger: Path) -> None:
    """Full enforcement was on: no call was refused, and each has its row."""
    failed = sum(load.refused + load.broken for load in ours.loads)
    if failed:
        raise SystemExit(f"bench: {failed} calls through the gateway failed")
    answered = sum(load.requests for load in ours.loads)
    # wrk leaves without waiting for its last calls, which are charged all the same.
    rows = settled_rows(ledger)
    if rows < answered:
        raise SystemExit(f"bench: {answered} answers, but {rows} rows")


def settled_rows(ledger: Path) -> int:
    """Count a ledger's rows, once no hold is left open.

    Raises:
        SystemExit: one is.
    """
    connection = connect_reading(ledger)
    try:
        rows, holds = next(
            connection.execute(
                "SELECT (SELECT count(*) FROM entries), (SELECT count(*) FROM holds)"
            )
        )
    finally:
        connection.close()
    if holds:
        raise SystemExit(f"bench: {holds} holds are left open")
    return int(rows)


def table(case: Case, peers: list[Peer]) -> Iterable[str]:
    """Lay the peers side by side, and tell whether the targets are met."""
    by_name = {peer.name: peer for peer in peers}
    for peer in peers:
        del peer.loads[0]  # the warm-up
    yield case.title
    yield f"  {'':<18}{'calls/s':>10}{'median ms':>12}{'p99 ms':>10}{'of nginx':>11}"
    for peer in peers:
        yield line(peer, f"{ratio(peer, by_name[LIMIT]):.3f}")
    for target in _targets(case, by_name):
        yield str(target)


def _targets(case: Case, peers: Mapping[str, Peer]) -> Iterable[Target]:
    ours = peers[OURS]
    if case.name == "many":
        of_limit = ratio(ours, peers[LIMIT])
        yield Target("of nginx", of_limit, OF_LIMIT, least=True)
        yield Target("of nginx, stretched", of_limit, OF_LIMIT_STRETCHED, least=True)
        times = ratio(ours, peers[LITELLM])
        yield Target(f"times {LITELLM}", times, TIMES_LITELLM, least=True)
    if case.name == "one":
        for figure, wanted in ADDED.items():
            added = ours.median(figure) - peers[DIRECT].median(figure)
            name = figure.removesuffix("_ms")
            yield Target(f"added to a call, {name}", added, wanted, unit="ms")


def _row(case: Case, peer: Peer) -> dict[str, object]:
    figures = ("per_second", "median_ms", "p99_ms")
    return {"case": case.name, "peer": peer.name} | {name: peer.median(name) for name in figures}


async def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description="Gateway bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
            peers = await run(case, options.rounds, options.seconds, Path(folder))
        print("\n".join(table(case, peers)), end="\n\n", flush=True)
        rows += [_row(case, peer) for peer in peers]
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
