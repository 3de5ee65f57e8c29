"""Run seeds, on all cores: `python -m tests.simulation 1-2000`, or `--regions`; one that breaks a
promise is run again with what happened: `python -m tests.simulation 17 --trace`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.simulation.regions import RegionsWorld
from tests.simulation.story import Report
from tests.simulation.world import World

BATCH = 50


def run(seed: int, *, trace: bool = False) -> Report:
    """Run one seed.

    Raises:
        Broken: a promise does not hold.
    """
    with tempfile.TemporaryDirectory() as folder:
        world = World(seed, Path(folder))
        try:
            return world.run()
        finally:
            if trace:
                print(*world.trace, sep="\n")


def run_regions(seed: int, *, trace: bool = False) -> Report:
    """Run one seed with regions.

    Raises:
        Broken: a promise does not hold.
    """
    world = RegionsWorld(seed)
    try:
        return world.run()
    finally:
        if trace:
            print(*world.trace, sep="\n")


def main() -> int:
    """Run the seeds; exit 1 where one breaks a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", help="one seed, or FIRST-LAST")
    parser.add_argument("--regions", action="store_true", help="run regions with slices")
    parser.add_argument("--trace", action="store_true", help="print what happened")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    if len(seeds) == 1:
        one = run_regions if options.regions else run
        print(_summary([one(seeds[0], trace=options.trace)]))
        return 0
    batches = [seeds[at : at + BATCH] for at in range(0, len(seeds), BATCH)]
    began, done, reports = time.monotonic(), 0, []
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for future in as_completed(
            [pool.submit(_batch, batch, options.regions) for batch in batches]
        ):
            ran, broken = future.result()
            if broken is not None:
                print(broken)
                pool.shutdown(cancel_futures=True)
                return 1
            reports += ran
            done += len(ran)
            print(f"{done} of {len(seeds)} seeds, {time.monotonic() - began:.0f} s", flush=True)
    print(_summary(reports))
    return 0


def _batch(seeds: Sequence[int], regions: bool) -> tuple[list[Report], str | None]:
    """Run seeds one after the other; tell what the first that breaks a promise said."""
    logging.disable()  # a settle that is delayed is what a run is about
    reports = []
    for seed in seeds:
        try:
            reports.append(run_regions(seed) if regions else run(seed))
        except Exception:
            again = f"Seed {seed} breaks a promise: python -m tests.simulation {seed} --trace"
            again += " --regions" if regions else ""
            return reports, f"{traceback.format_exc()}\n{again}"
    return reports, None


def _summary(reports: Sequence[Report]) -> str:
    events: Counter[str] = sum((report.events for report in reports), Counter())
    answers: Counter[str] = sum((report.answers for report in reports), Counter())
    billed, charged = sum(r.billed for r in reports), sum(r.charged for r in reports)
    return "\n".join(
        [
            "All promises hold.",
            f"answers: {', '.join(f'{n} × {status}' for status, n in sorted(answers.items()))}",
            f"events: {', '.join(f'{n} × {what}' for what, n in sorted(events.items()))}",
            f"billed {billed / 1e9:.6f} USD, charged {charged / 1e9:.6f} USD",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
