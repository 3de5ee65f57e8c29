"""The process that stands in for all gateways: `ManyGateways`, and spending on command.

python -m bench.operator.gateways KUBECONFIG FOLDER PORT
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Final

import uvloop
from tests.support.many_gateways import ManyGateways

from llmbudget.clients.cluster import Cluster
from llmbudget.local.http1 import Answer, Request, serve

SMALL: Final = 1_000
"""Nano-USD of a call that crosses nothing."""
_TICK: Final = 0.05


async def spend(gateways: ManyGateways, rate: float) -> None:
    """Charge small calls to all budgets in turn, so many a second."""
    roots = itertools.cycle(sorted(gateways.ledgers))
    due = time.monotonic()
    while True:
        for _ in range(max(1, round(rate * _TICK))):
            await gateways.spend(next(roots), SMALL)
        due += _TICK
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def main(kubeconfig: Path, folder: Path, port: int) -> None:
    """Serve until killed."""
    spending: asyncio.Task[None] | None = None
    async with Cluster.from_kubeconfig(kubeconfig) as cluster:
        gateways = ManyGateways(cluster, folder)

        async def command(request: Request, answer: Answer) -> None:
            nonlocal spending
            asked = json.loads(request.body or b"{}")
            if request.path == "/cross":
                at = await gateways.spend(asked["account"], asked["nano"])
                answer.send(200, json.dumps({"at": at}).encode())
            elif request.path == "/spend":
                if spending is not None:
                    spending.cancel()
                rate = asked["rate"]
                spending = asyncio.create_task(spend(gateways, rate)) if rate else None
                answer.send(200, b"{}")
            else:
                spent = {
                    root: ledger.balance(root).spent for root, ledger in gateways.ledgers.items()
                }
                answer.send(200, json.dumps(spent).encode())

        async with await serve(command, port):
            await gateways.run()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
