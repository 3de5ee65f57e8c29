"""What the benches of the ledger share: callers that hold and settle, and how it is told."""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

from bench.report import Target

from llmbudget.api.budget import Action
from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig, Threshold
from llmbudget.gateway.server import GARBAGE
from llmbudget.ledger.interface import HoldRequest, Ledger, Settlement

ROOT: Final = "llm/org"
CAP: Final = 10**13
HELD: Final = 10**7
COST: Final = 7 * 10**6
TOKENS: Final = (100, 20)


@dataclass(frozen=True, slots=True)
class Load:
    """What one gateway does."""

    file: Path
    """Of the ledger: where it is, or how to connect to it."""
    budgets: int
    group: int
    """Callers at once, each of which holds and settles over and over."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """Calls that were held and settled, and what a caller waited, in seconds."""

    calls: int
    seconds: float
    took: Sequence[float]
    """For its hold and its settle."""
    held: Sequence[float] = ()
    """For its hold alone."""

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds

    def at(self, share: float) -> float:
        """Tell what so large a share of the callers waited at most, in milliseconds."""
        return percentile(self.took, share)


Run = Callable[[Load, int, Barrier], Done]


def percentile(seconds: Sequence[float], share: float) -> float:
    """Find a percentile, in milliseconds."""
    return sorted(seconds)[int(len(seconds) * share)] * 1000


def accounts(budgets: int) -> list[str]:
    """Name the budgets that are spent."""
    return [f"llm/team-{number}" for number in range(budgets)]


def configs(budgets: int) -> list[AccountConfig]:
    """Make a tree of them."""
    threshold = Threshold(percentage=80, action=Action.NOTIFY_ADMIN)
    root = AccountConfig(name=ROOT, cap_nano=CAP, thresholds=(threshold,), providers=())
    return [
        root,
        *(
            AccountConfig(name=name, parent=ROOT, cap_nano=CAP, providers=())
            for name in accounts(budgets)
        ),
    ]


async def drive(ledger: Ledger, load: Load, owner: str) -> Done:
    """Let callers hold and settle until the time is up, in a process that looks for garbage as
    seldom as a gateway does."""
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    names = itertools.cycle(accounts(load.budgets))
    took: list[float] = []
    held: list[float] = []
    began = time.perf_counter()

    async def call(caller: int) -> None:
        for number in itertools.count():
            start = time.perf_counter()
            if start - began >= load.seconds:
                return
            id = f"call-{owner}-{caller}-{number}"
            await ledger.hold(HoldRequest(id, next(names), Nano(HELD), "provider", "model"))
            held.append(time.perf_counter() - start)
            await ledger.settle(id, Settlement(Nano(COST), *TOKENS))
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(call(caller) for caller in range(load.group)))
    return Done(len(took), time.perf_counter() - began, took, held)


async def one_by_one(ledger: Ledger, budgets: int, seconds: float, *, apart: float) -> float:
    """Serve one caller as a gateway does: its answer leaves once the settle is queued, and its next
    call comes so many seconds later. Tells the median of what a call waits for, in milliseconds."""
    names = itertools.cycle(accounts(budgets))
    waits: list[float] = []
    settles: list[asyncio.Future[object]] = []
    began = time.perf_counter()
    while (start := time.perf_counter()) - began < seconds:
        id = f"alone-{apart}-{len(waits)}"
        await ledger.hold(HoldRequest(id, next(names), Nano(HELD), "provider", "model"))
        waits.append(time.perf_counter() - start)
        settles.append(asyncio.ensure_future(ledger.settle(id, Settlement(Nano(COST), *TOKENS))))
        # At least two turns of the loop: the settle goes first, in a group of its own.
        await asyncio.sleep(0)
        await asyncio.sleep(apart)
    await asyncio.gather(*settles)
    return percentile(waits, 0.5)


APART: Final = 0.02
"""Seconds after which a caller that reads its answers calls again."""


async def tell_waits(ledger: Ledger, budgets: int, seconds: float) -> list[Target]:
    """Say what one caller's calls wait for."""
    apart = await one_by_one(ledger, budgets, seconds, apart=APART)
    at_once = await one_by_one(ledger, budgets, seconds, apart=0)
    return [
        Target("one caller, a call now and then: median of its wait", apart, 2, unit="ms"),
        Target("one caller, the next call with the answer: the same", at_once, 2, unit="ms"),
    ]


def together(run: Run, loads: Sequence[Load]) -> Done:
    """Let gateways run at once, each a process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.ledger.raw", "bench.ledger.slices"])
    start, found = context.Barrier(len(loads)), context.Queue()
    processes = [
        context.Process(target=_serve, args=(run, load, number, start, found))
        for number, load in enumerate(loads)
    ]
    for process in processes:
        process.start()
    each = [found.get(timeout=load.seconds + 200) for load in loads]
    for process in processes:
        process.join()
    return Done(
        sum(done.calls for done in each),
        statistics.mean(done.seconds for done in each),
        [took for done in each for took in done.took],
        [held for done in each for held in done.held],
    )


def _serve(
    run: Run, load: Load, owner: int, start: Barrier, found: multiprocessing.Queue[Done]
) -> None:
    found.put(run(load, owner, start))


HEAD: Final = (
    f"{'budgets':>8}{'gateways':>10}{'group':>7}{'ledger/s':>11}{'p50 ms':>9}{'p99 ms':>9}"
    f"{'raw/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'ratio':>8}"
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One load, by the ledger and by its raw limit, which ran in turn."""

    budgets: int
    owners: int
    group: int
    rounds: Sequence[tuple[Done, Done]]

    @property
    def ratio(self) -> float:
        """Of calls a second, in the median round."""
        return statistics.median(ours.rate / raw.rate for ours, raw in self.rounds)

    def __str__(self) -> str:
        ours, raw = min(self.rounds, key=lambda r: abs(r[0].rate / r[1].rate - self.ratio))
        return f"{self.budgets:>8,}{self.owners:>10}{self.group:>7}" + (
            f"{ours.rate:>11,.0f}{ours.at(0.5):>9.2f}{ours.at(0.99):>9.2f}"
            f"{raw.rate:>10,.0f}{raw.at(0.5):>9.2f}{raw.at(0.99):>9.2f}{self.ratio:>8.2f}"
        )


def verdict(cells: Sequence[Cell]) -> list[Target]:
    """Say whether the ledger keeps up with its raw limit everywhere, and what a call waits."""
    worst = min(cells, key=lambda cell: cell.ratio)
    where = f"{worst.budgets:,} budgets, {worst.owners} gateways, groups of {worst.group}"
    targets = [Target(f"of the raw limit at the least ({where})", worst.ratio, 0.5, least=True)]
    alone = next((cell for cell in cells if (cell.owners, cell.group) == (1, 1)), None)
    if alone is not None:
        ours = [done for done, _ in alone.rounds]
        hold = statistics.median(percentile(done.held, 0.5) for done in ours)
        both = statistics.median(done.at(0.5) for done in ours)
        targets.append(
            Target("one caller: median of a hold, which it waits for", hold, 2, unit="ms")
        )
        targets.append(Target("one caller that waits for its settle too", both, 2, unit="ms"))
    return targets
