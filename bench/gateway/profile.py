"""Flame graph of the hot path: where does a call's time go?

    python -m bench.gateway.profile [--seconds S] [--output FILE] [--share PERCENT]

wrk sends calls over 32 connections, and py-spy looks 500 times a second at who holds the
interpreter's lock. The graph is written as text, a line a function, indented below its caller: the
share of the samples in it and in what it calls. What is below `--share` per cent is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import environment
from bench.gateway.run import CAP, KEY, PRICES
from bench.gateway.wrk import measure
from bench.parts.run import REQUIREMENTS
from bench.peers import nginx, our_gateway
from bench.report import say

from llmbudget.local.binaries import find
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.process import spawn
from llmbudget.local.stage import Stage

CONNECTIONS: Final = 32
RATE: Final = 500
_LINE: Final = re.compile(r":\d+\)$")
_DULL: Final = re.compile(r"click/|runners\.py|uvloop/|threading\.py|^<module>|^thread \(")


@dataclass
class Frame:
    """A function, as called from where it stands in the graph."""

    samples: int = 0
    callees: dict[str, Frame] = field(default_factory=dict)


async def record(seconds: int, folder: Path) -> Path:
    """Sample a gateway under load; each line of the file is a stack and its count."""
    packages = await asyncio.to_thread(environment.installed, "bench", REQUIREMENTS)
    stacks = folder / "stacks"
    plane = ControlPlane(folder / "cluster", say=say)
    async with (
        plane,
        Stage(folder / "stage", plane.kubeconfig, find(lambda _: None).kubectl) as stage,
        nginx.upstream(folder) as port,
    ):
        config = our_gateway.configuration(PRICES, CAP, f"http://127.0.0.1:{port}/v1", 1)
        async with our_gateway.running(config, KEY, folder, stage) as gateway:

            async def load(for_seconds: int) -> None:
                await measure(
                    gateway.url,
                    gateway.tokens,
                    connections=CONNECTIONS,
                    seconds=for_seconds,
                    folder=folder,
                )

            await load(2)
            loading = asyncio.create_task(load(seconds + 2))
            spy = [packages / "bin" / "py-spy", "record", "--format", "raw", "--gil", "--threads"]
            with (folder / "py-spy.log").open("wb") as log:
                process = await spawn(
                    [
                        *(*spy, "--rate", str(RATE), "--duration", str(seconds)),
                        *("--output", stacks, "--pid", str(gateway.process.pid)),
                    ],
                    output=log,
                )
                if await process.wait():
                    raise SystemExit(f"bench: py-spy failed: {(folder / 'py-spy.log').read_text()}")
            await loading
    return stacks


def graph(lines: Iterable[str]) -> Frame:
    """Join stacks to a graph, without the frames that every stack has."""
    root = Frame()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frame = root
        frame.samples += int(count)
        for name in stack.split(";"):
            if _DULL.search(name):
                continue
            frame = frame.callees.setdefault(_LINE.sub(")", name), Frame())
            frame.samples += int(count)
    return root


def written(root: Frame, share: float) -> Iterator[str]:
    """Write a graph as text, dearest first."""

    def below(frame: Frame, depth: int) -> Iterator[str]:
        dearest = sorted(frame.callees.items(), key=lambda item: -item[1].samples)
        for name, callee in dearest:
            percent = 100 * callee.samples / root.samples
            if percent >= share:
                yield f"{percent:5.1f} %  {'  ' * depth}{name}"
                yield from below(callee, depth + 1)

    return below(root, 0)


async def main() -> None:
    """Read the command line, sample, and write."""
    parser = argparse.ArgumentParser(description="Profile of the gateway")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--share", type=float, default=1.0, help="per cent")
    parser.add_argument("--output", type=Path, help="default: standard output")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="profile-") as name:
        stacks = await record(options.seconds, Path(name))
        with stacks.open() as lines:
            text = "\n".join(written(graph(lines), options.share)) + "\n"
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
