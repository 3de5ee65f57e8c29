"""Gateway bench: what does enforcement cost on the wire?

    python -m bench.gateway.run [--rounds N] [--seconds S] [--only CASE ...] [--json FILE]

The same nginx, which answers every call at once with one completion, behind three proxies in the
same run: nginx as a plain proxy, one worker (the limit); this gateway with everything on: identity,
hold, durable ledger, metering, metrics; LiteLLM's proxy (the usual choice). wrk sends chat
completions on one thread. Peers take turns, several rounds each, since these machines are noisy:
the ratios are medians over the rounds.

Raw limits of the same run stand beside them: proxies in Python that pass calls on and do nothing
else, made of the gateway's own HTTP server and client, and of granian and pyreqwest; and how long
the disk takes to make one small write durable, which each call waits for once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.gateway.wrk import measure
from bench.parts import run as parts
from bench.peers import litellm_proxy, nginx, our_gateway
from bench.report import Peer, Target, line, processor_seconds, ratio, say

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
PARTS: Final = ("own+own", "granian+pyreqwest")
"""Server and client of proxies that do nothing else."""
_WRITES: Final = 200
_WRITE: Final = 8192
"""Bytes of a write that is made durable: a call's hold is about as many."""

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
    beside: bool = False
    """Whether LiteLLM and the parts are measured too."""


CASES: Final = (
    Case("one", "1 connection: what a call waits longer", 1, beside=True),
    Case("many", "32 connections: how many calls a second", 32, beside=True),
    Case("crowd", "256 connections", 256),
    Case("tls", "32 connections, TLS", 32, tls=True),
    Case("callers", "32 connections, 1,000 identities in turn", 32, callers=1000),
)


async def run(
    case: Case, rounds: int, seconds: int, folder: Path
) -> tuple[list[Peer], list[float]]:
    """Measure all peers of a case in turn, and the disk in milliseconds.

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
            ours = Peer(OURS, gateway.url, gateway.tokens, gateway.process.pid)
            peers = [Peer(LIMIT, limit, ["-"]), ours]
            if not case.tls:
                peers.append(Peer(DIRECT, f"http://127.0.0.1:{port}", ["-"]))
            async with _others(case, port, folder) as others:
                flushes = await _take_turns(case, [*peers, *others], rounds, seconds, folder)
        _check(ours, gateway.ledger)
    return [*peers, *others], flushes


async def _take_turns(
    case: Case, peers: list[Peer], rounds: int, seconds: int, folder: Path
) -> list[float]:
    flushes = []
    for number in range(rounds + 1):
        say(f"{case.name}: round {number} of {rounds}" if number else f"{case.name}: warming up")
        flushes.append(flush_ms(folder))
        for peer in peers:
            before = processor_seconds(peer.pid) if peer.pid else 0.0
            load = await measure(
                peer.url,
                peer.tokens,
                connections=case.connections,
                seconds=seconds,
                folder=folder,
            )
            peer.loads.append(load)
            if peer.pid:
                spent = processor_seconds(peer.pid) - before
                peer.microseconds.append(spent / load.requests * 1e6)
    return flushes


@contextlib.asynccontextmanager
async def _others(case: Case, port: int, folder: Path) -> AsyncIterator[list[Peer]]:
    """Run the parts alone, and LiteLLM."""
    if not case.beside:
        yield []
        return
    config = litellm_proxy.configuration(PRICES, f"http://127.0.0.1:{port}/v1", KEY, None)
    async with contextlib.AsyncExitStack() as stack:
        peers = [
            Peer(name, await stack.enter_async_context(parts.running(name, port))) for name in PARTS
        ]
        url, _ = await stack.enter_async_context(litellm_proxy.running(config, folder))
        yield [*peers, Peer(LITELLM, url, [litellm_proxy.MASTER_KEY])]


def flush_ms(folder: Path) -> float:
    """Tell how long the disk takes at the median to make a small write durable."""
    took: list[float] = []
    file = os.open(folder / "flushed", os.O_CREAT | os.O_RDWR)
    try:
        for number in range(_WRITES):
            os.pwrite(file, bytes(_WRITE), number * _WRITE)
            began = time.perf_counter()
            os.fdatasync(file)
            took.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(file)
    return statistics.median(took)


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


def table(case: Case, peers: list[Peer], flushes: list[float]) -> Iterable[str]:
    """Lay the peers side by side, and tell whether the targets are met."""
    by_name = {peer.name: peer for peer in peers}
    for peer in peers:
        del peer.loads[0], peer.microseconds[:1]  # the warm-up
    yield case.title
    yield f"  {'':<18}{'calls/s':>10}{'median ms':>12}{'p99 ms':>10}{'of nginx':>11}"
    for peer in peers:
        yield line(peer, f"{ratio(peer, by_name[LIMIT]):.3f}")
    spent = statistics.median(by_name[OURS].microseconds)
    yield f"  processor time of a call through {OURS}: {spent:.0f} us"
    yield f"  the disk makes {_WRITE} bytes durable in {statistics.median(flushes):.2f} ms"
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
            found = await run(case, options.rounds, options.seconds, Path(folder))
        print("\n".join(table(case, *found)), end="\n\n", flush=True)
        rows += [_row(case, peer) for peer in found[0]]
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
