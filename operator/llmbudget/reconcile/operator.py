"""The operator's process: first everything is listed, then it is watched and worked on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import kopf

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, PROVIDERS
from llmbudget.decide.world import Installation
from llmbudget.reconcile.controller import Controller
from llmbudget.reconcile.wiring import registry, settings

log = logging.getLogger(__name__)


class OperatorEnded(Exception):
    """Something that must never end did; the process is to be started again."""


@dataclass(frozen=True, slots=True)
class Options:
    """Where everything is: the command's options."""

    kubeconfig: Path | None
    """None: as a pod of the cluster."""
    service_account: Path
    """Folder of the pod's own token and CA."""
    installation: Installation
    local_gateways: Path | None
    health_port: int


async def run(options: Options) -> None:
    """Reconcile until SIGTERM or SIGINT.

    Raises:
        ApiError: the resources can't be listed at the start.
    """
    cluster = (
        Cluster.from_kubeconfig(options.kubeconfig)
        if options.kubeconfig
        else Cluster.in_cluster(options.service_account)
    )
    async with cluster:
        controller = Controller(
            cluster,
            options.installation,
            local_gateways=options.local_gateways,
            instance=f"{socket.gethostname()}-{os.getpid()}",
        )
        await _list_all(cluster, controller)
        await controller.find_leftovers()
        stop = asyncio.Event()
        await _until(
            stop,
            controller.run(),
            kopf.operator(
                registry=registry(controller, stop),
                settings=settings(),
                clusterwide=True,
                standalone=True,
                liveness_endpoint=f"http://0.0.0.0:{options.health_port}/healthz",
            ),
        )


async def _list_all(cluster: Cluster, controller: Controller) -> None:
    """Know all resources before the first is reconciled: a root without its children would be
    rendered twice."""
    for kind in (PROVIDERS, BUDGETS):
        items, _ = await cluster.list(kind)
        for item in items:
            controller.put(kind.kind, item)
    found = {"budgets": len(controller.store.budgets), "providers": len(controller.store.providers)}
    log.info("listed", extra={"fields": found})


async def _until(stop: asyncio.Event, *works: Awaitable[None]) -> None:
    """Run all until a signal comes, or until one of them fails, which ends the process."""
    loop = asyncio.get_running_loop()
    tasks = [asyncio.ensure_future(work) for work in works]
    stopped = asyncio.create_task(stop.wait())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
    ended = [task for task in tasks if task.done()]
    for task in (*tasks, stopped):
        task.cancel()
    await asyncio.gather(*tasks, stopped, return_exceptions=True)
    for task in ended:
        task.result()
    if not stop.is_set():
        raise OperatorEnded("a part of the operator ended by itself: see the log above")
