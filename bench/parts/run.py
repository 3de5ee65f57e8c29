"""Parts bench: which HTTP server and which HTTP client carry a gateway in Python?

    python -m bench.parts.run [--rounds N] [--seconds S] [--only SERVER+CLIENT ...]

Plain pass-through proxies, one process each, made of one server and one client, beside nginx as a
plain proxy in the same run, on the same nginx upstream. They take turns; ratios are medians over
the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from bench import environment
from bench.gateway.wrk import measure
from bench.peers import nginx
from bench.report import Peer, line, ratio, say

from llmbudget.local.process import free_port, spawn, stop

REQUIREMENTS: Final = Path(__file__).parents[1] / "requirements.txt"
CONNECTIONS: Final = 32
PARTS: Final = (
    *("own+own", "granian+own", "granian+pyreqwest", "granian+aiohttp", "granian+httpx"),
    *("uvicorn+own", "aiohttp+own", "aiohttp+aiohttp", "starlette+httpx"),
)
_START_SECONDS: Final = 20


@contextlib.asynccontextmanager
async def running(parts: str, upstream: int) -> AsyncIterator[str]:
    """Serve by a server and a client for the block; the value is the base URL."""
    folder = await asyncio.to_thread(environment.installed, "bench", REQUIREMENTS)
    port = free_port()
    packages = f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    process = await spawn(
        [sys.executable, "-m", "bench.parts.proxies", *parts.split("+"), str(port), str(upstream)],
        environment=dict(os.environ) | {"PYTHONPATH": str(folder / "lib" / packages)},
    )
    try:
        await _listening(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        await stop(process)


async def _listening(process: asyncio.subprocess.Process, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.1)
    raise SystemExit("bench: a proxy did not start")


async def run(chosen: list[str], rounds: int, seconds: int, folder: Path) -> list[Peer]:
    """Measure all in turn.

    Raises:
        SystemExit: a call failed.
    """
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(nginx.upstream(folder))
        limit = await stack.enter_async_context(nginx.proxy(folder, port))
        peers = [Peer("nginx", limit)]
        for parts in chosen:
            peers.append(Peer(parts, await stack.enter_async_context(running(parts, port))))
        for number in range(rounds + 1):
            say(f"parts: round {number} of {rounds}" if number else "parts: warming up")
            for peer in peers:
                load = await measure(
                    peer.url, ["-"], connections=CONNECTIONS, seconds=seconds, folder=folder
                )
                if load.refused or load.broken:
                    raise SystemExit(f"bench: {peer.name} failed")
                if number:
                    peer.loads.append(load)
    return peers


async def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description="Parts bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="SERVER+CLIENT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parts-bench-") as folder:
        peers = await run(options.only, options.rounds, options.seconds, Path(folder))
    print(f"A call passed on, {CONNECTIONS} connections (server+client)")
    print(f"  {'':<18}{'calls/s':>10}{'median ms':>12}{'p99 ms':>10}{'of nginx':>11}")
    for peer in peers:
        print(line(peer, f"{ratio(peer, peers[0]):.3f}"))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
