"""Replicas bench: what does a second gateway on the same ledger add?

    python -m bench.gateway.replicas [--rounds N] [--seconds S]

One PostgreSQL database is the ledger of one gateway, then of two, each with half of the load.
Afterwards the books must be right: no hold is open, each answer has its row, and what the account
spent is the sum of the rows. On a machine of two cores the gateways share them with the database,
the provider and the load; so each gateway runs by itself on a part of a core as well, as a pod with
a CPU limit does (needs cgroups and root; left out elsewhere).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench.gateway.run import CAP, KEY, PRICES
from bench.gateway.wrk import Load, measure
from bench.peers import nginx, our_gateway
from bench.report import say
from tests.support.postgres_server import PostgresServer

from llmbudget.local.binaries import find
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.stage import Stage, write_private

CONNECTIONS: Final = 32
LIMIT: Final = 0.25
"""Cores of a gateway that has a limit."""
_PERIOD: Final = 10_000
"""Microseconds over which the kernel counts a limit."""
_CGROUPS: Final = Path("/sys/fs/cgroup")
_ROLE: Final = "bench"


async def run(rounds: int, seconds: int, folder: Path) -> list[str]:
    """Measure one and two gateways in turn, without and with a limit.

    Raises:
        SystemExit: a call failed, or the books are wrong.
    """
    server = PostgresServer()
    plane = ControlPlane(folder / "cluster", say=say)
    try:
        server.start()
        server.make_role(_ROLE)
        string = folder / "postgres"
        write_private(string, server.url(user=_ROLE, schema=_ROLE))
        async with (
            plane,
            Stage(folder / "stage", plane.kubeconfig, find(lambda _: None).kubectl) as stage,
            nginx.upstream(folder) as port,
        ):
            config = our_gateway.configuration(PRICES, CAP, f"http://127.0.0.1:{port}/v1", 1)
            config = config.model_copy(update={"ledger": "postgres"})
            tokens = await our_gateway.prepare(config, KEY, folder, stage)
            async with (
                our_gateway.serving(tokens, folder, stage, postgres=string) as first,
                our_gateway.serving(tokens, folder, stage, postgres=string) as second,
            ):
                both = (first, second)
                lines, answered = [], 0
                for title, limited in (("no limit", False), (f"{LIMIT:g} cores each", True)):
                    with _limits(both) if limited else contextlib.nullcontext(True) as possible:
                        if not possible:
                            lines.append(f"  {title}: left out, this machine sets no limits")
                            continue
                        one, two = await _take_turns(both, rounds, seconds, folder)
                    answered += sum(load.requests for load in (*one, *two))
                    lines.append(_line(title, one, two))
        _check(server, answered)
    finally:
        server.stop()
    return lines


async def _take_turns(
    gateways: Sequence[our_gateway.Running], rounds: int, seconds: int, folder: Path
) -> tuple[list[Load], list[Load]]:
    one, two = list[Load](), list[Load]()
    for number in range(rounds + 1):
        say(f"replicas: round {number} of {rounds}" if number else "replicas: warming up")
        for loads, used in ((one, gateways[:1]), (two, gateways)):
            found = await asyncio.gather(
                *(
                    measure(
                        gateway.url,
                        gateway.tokens,
                        connections=CONNECTIONS // len(used),
                        seconds=seconds,
                        folder=folder,
                    )
                    for gateway in used
                )
            )
            if any(load.refused or load.broken for load in found):
                raise SystemExit("bench: calls failed")
            loads += found
    return one, two


@contextlib.contextmanager
def _limits(gateways: Sequence[our_gateway.Running]) -> Iterator[bool]:
    """Give each gateway so many cores and no more; False: that can't be done here."""
    old = _CGROUPS / "cpu"
    made = []
    try:
        for number, gateway in enumerate(gateways):
            group = (old if old.is_dir() else _CGROUPS) / f"llmbudget-bench-{os.getpid()}-{number}"
            group.mkdir()
            made.append(group)
            quota = int(LIMIT * _PERIOD)
            if old.is_dir():
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (group / "cpu.max").write_text(f"{quota} {_PERIOD}")
            (group / "cgroup.procs").write_text(str(gateway.process.pid))
    except OSError:
        yield False
    else:
        yield True
    finally:
        for number, group in enumerate(made):
            with contextlib.suppress(OSError):
                (group.parent / "cgroup.procs").write_text(str(gateways[number].process.pid))
                group.rmdir()


def _line(title: str, one: Sequence[Load], two: Sequence[Load]) -> str:
    # The first of each is the warm-up; two gateways bring two loads a round.
    alone = [load.per_second for load in one[1:]]
    pairs = zip(two[2::2], two[3::2], strict=True)
    together = [left.per_second + right.per_second for left, right in pairs]
    ratio = statistics.median(b / a for a, b in zip(alone, together, strict=True))
    return (
        f"  {title:<16}{statistics.median(alone):>10.0f}{statistics.median(together):>10.0f}"
        f"{ratio:>8.2f}"
    )


def _check(server: PostgresServer, answered: int) -> None:
    """The ledger's rules held: each answer has a row, no hold is open, and the sums are those of
    the rows."""
    [(rows, cost, holds, spent)] = server.execute(
        f"SELECT (SELECT count(*) FROM {_ROLE}.entries), (SELECT sum(cost) FROM {_ROLE}.entries), "
        f"(SELECT count(*) FROM {_ROLE}.holds), "
        f"(SELECT sum(spent + overage) FROM {_ROLE}.account_periods)"
    )
    if holds or rows < answered or cost != spent:
        raise SystemExit(
            f"bench: {answered} answers, {rows} rows, {holds} open holds, {cost} charged, "
            f"{spent} nano-USD in the account"
        )


async def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description="Replicas bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="replicas-bench-") as name:
        lines = await run(options.rounds, options.seconds, Path(name))
    print(f"Gateways on one PostgreSQL ledger, {CONNECTIONS} connections in all, calls/s")
    print(f"  {'':<16}{'one':>10}{'two':>10}{'ratio':>8}")
    print("\n".join(lines))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
