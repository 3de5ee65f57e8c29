"""Streams bench: what does a thousand open streams cost, and how late does a chunk come?

    python -m bench.gateway.streams [--streams N] [--at-once N] [--rate R] [--seconds S]
                                    [--rounds N]

A provider writes events that carry the time; callers read them directly, through nginx as a plain
relay, and through this gateway with everything on. The lag of a chunk is the time from its writing
to its reading; what a peer adds is its lag less the lag without it, in the same run. Chunks that
are read while all streams are open are counted apart from those read while streams are opened, or
end. They are opened 500 a second, as many at the same moment as `--at-once` says: the first chunk
of each waits for the calls of all of these.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import uvloop
from bench.gateway.run import CAP, DIRECT, KEY, LIMIT, OURS, PRICES, settled_rows
from bench.gateway.wrk import BODY
from bench.peers import nginx, our_gateway
from bench.report import Target, processor_seconds, say

from llmbudget.local.binaries import find
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.process import free_port, spawn, stop
from llmbudget.local.stage import Stage

_TIME: Final = re.compile(rb"@(\d+)@")
_OPENED_PER_SECOND: Final = 500
_MEGABYTE: Final = 1024


@dataclass
class Lags:
    """What one turn of a peer measured, in milliseconds."""

    steady: list[float] = field(default_factory=list)
    """While all streams are open."""
    changing: list[float] = field(default_factory=list)
    """While streams are opened, or end."""
    first: list[float] = field(default_factory=list)
    """From sending a request to reading its first chunk."""
    ended: int = 0
    """Streams that came to their end."""
    memory: float = 0.0
    """Resident megabytes of the peer while the streams are open."""
    cpu: float = 0.0
    """Share of a core that the peer took."""
    all_open: bool = False


class Caller(asyncio.Protocol):
    """One stream's reader."""

    def __init__(self, request: bytes, lags: Lags) -> None:
        self._request = request
        self._lags = lags
        self._sent = 0.0
        self._tail = b""
        self.over = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a stream."""
        self._transport = transport  # type: ignore[assignment]
        self._sent = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note how late each chunk is."""
        now = time.monotonic_ns()
        text = self._tail + data
        end = 0
        lags = self._lags.steady if self._lags.all_open else self._lags.changing
        for found in _TIME.finditer(text):
            lags.append((now - int(found[1])) / 1e6)
            end = found.end()
            if self._sent:
                self._lags.first.append((now - self._sent) / 1e6)
                self._sent = 0
        self._tail = text[max(end, len(text) - 32) :]
        if text.endswith(b"0\r\n\r\n"):
            self._lags.ended += 1
            self._lags.all_open = False
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """The stream is over."""
        if not self.over.done():
            self.over.set_result(None)


@dataclass
class Peer:
    """One way from the callers to the provider."""

    name: str
    url: str
    token: str
    pids: tuple[int, ...] = ()
    turns: list[Lags] = field(default_factory=list)


async def turn(peer: Peer, streams: int, at_once: int) -> Lags:
    """Open all streams, so many at once, and read them to their ends."""
    lags = Lags()
    body = json.dumps(BODY | {"stream": True}).encode()
    url = urlsplit(peer.url)
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url.netloc}\r\n"
        f"authorization: Bearer {peer.token}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    loop = asyncio.get_running_loop()
    open_streams: list[Caller] = []
    before, began = processor_seconds(*peer.pids), loop.time()
    while len(open_streams) < streams:
        many = min(at_once, streams - len(open_streams))
        made = await asyncio.gather(
            *(
                loop.create_connection(lambda: Caller(request, lags), url.hostname, url.port)
                for _ in range(many)
            )
        )
        open_streams += [caller for _, caller in made]
        await asyncio.sleep(at_once / _OPENED_PER_SECOND)
    lags.all_open = True
    lags.memory = memory(peer.pids)
    await asyncio.gather(*(caller.over for caller in open_streams))
    lags.cpu = (processor_seconds(*peer.pids) - before) / (loop.time() - began)
    return lags


def memory(pids: tuple[int, ...]) -> float:
    """Sum the resident megabytes of processes."""
    found = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    return sum(int(match[1]) for match in found if match) / _MEGABYTE


async def run(
    streams: int, at_once: int, rate: float, seconds: float, rounds: int, folder: Path
) -> list[str]:
    """Measure all peers in turn, and lay the figures side by side.

    Raises:
        SystemExit: a stream broke, or the ledger has not one row a stream.
    """
    chunks = int(seconds * rate)
    port = free_port()
    plane = ControlPlane(folder / "cluster", say=say)
    provider = await spawn(
        [sys.executable, "-m", "bench.gateway.stream_provider", *map(str, (port, chunks, rate))]
    )
    try:
        async with (
            plane,
            Stage(folder / "stage", plane.kubeconfig, find(lambda _: None).kubectl) as stage,
            nginx.proxy(folder, port, buffered=False) as limit,
        ):
            config = our_gateway.configuration(PRICES, CAP, f"http://127.0.0.1:{port}/v1", 1)
            async with our_gateway.running(config, KEY, folder, stage) as gateway:
                pid = gateway.process.pid
                rest = memory((pid,))
                ours = Peer(OURS, gateway.url, gateway.tokens[0], (pid,))
                peers = [
                    Peer(DIRECT, f"http://127.0.0.1:{port}", "-"),
                    Peer(LIMIT, limit, "-"),
                    ours,
                ]
                for number in range(rounds + 1):
                    say(f"streams: round {number} of {rounds}" if number else "streams: warming up")
                    for peer in peers:
                        few = streams if number else min(streams, 50)
                        peer.turns.append(await turn(peer, few, at_once))
            expected = streams * rounds + min(streams, 50)
            for peer in peers:
                if sum(lags.ended for lags in peer.turns) != expected:
                    raise SystemExit(f"bench: streams of {peer.name} broke off")
            if settled_rows(gateway.ledger) != expected:
                raise SystemExit("bench: the ledger has not one row a stream")
    finally:
        await stop(provider)
    return table(peers, streams, rate, rest)


def table(peers: list[Peer], streams: int, rate: float, rest: float) -> list[str]:
    """Lay the peers side by side: medians over the rounds."""
    direct = peers[0]
    lines = [
        f"{streams} streams at {rate:g} chunks/s each (lags in ms)",
        f"  {'':<12}{'lag p50':>9}{'p99':>8}{'changing p99':>14}{'first p50':>11}"
        f"{'added p99':>11}{'added first':>13}{'core':>7}{'MB':>7}",
    ]
    for peer in peers:
        del peer.turns[0]  # the warm-up
        added = _added(peer, direct, "steady", 99)
        first = _added(peer, direct, "first", 50)
        cpu = statistics.median(lags.cpu for lags in peer.turns)
        memory = max(lags.memory for lags in peer.turns)
        lines.append(
            f"  {peer.name:<12}{_over(peer, 'steady', 50):>9.2f}{_over(peer, 'steady', 99):>8.2f}"
            f"{_over(peer, 'changing', 99):>14.2f}{_over(peer, 'first', 50):>11.2f}"
            f"{added:>11.2f}{first:>13.2f}" + (f"{cpu:>7.2f}{memory:>7.0f}" if peer.pids else "")
        )
    ours = peers[-1]
    targets = (
        Target("lag added, p99", _added(ours, direct, "steady", 99), 20, unit="ms"),
        Target("first byte added, median", _added(ours, direct, "first", 50), 2, unit="ms"),
        Target("memory at rest", rest, 150, unit="MB"),
        Target("memory with the streams", max(t.memory for t in ours.turns), 250, unit="MB"),
    )
    return [*lines, *map(str, targets)]


def _added(peer: Peer, direct: Peer, figure: str, percent: int) -> float:
    return _over(peer, figure, percent) - _over(direct, figure, percent)


def _over(peer: Peer, figure: str, percent: int) -> float:
    """Return the median over the rounds of a percentile."""
    return statistics.median(
        statistics.quantiles(getattr(lags, figure), n=100)[percent - 1] for lags in peer.turns
    )


async def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description="Streams bench")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=50, help="opened at the same moment")
    parser.add_argument("--rate", type=float, default=20, help="chunks a second of each stream")
    parser.add_argument("--seconds", type=float, default=10, help="that a stream lasts")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streams-bench-") as folder:
        lines = await run(
            options.streams,
            options.at_once,
            options.rate,
            options.seconds,
            options.rounds,
            Path(folder),
        )
    print("\n".join(lines))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main())
