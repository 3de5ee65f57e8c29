"""The operator's process: it waits to lead, lists everything, then watches it and works on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import BUDGETS, PROVIDERS
from llmbudget.decide.world import Installation
from llmbudget.reconcile.controller import RESYNC_SECONDS, Controller
from llmbudget.reconcile.election import LEASE_NAME, Election, LeaseLost
from llmbudget.reconcile.health import Health, serve_health
from llmbudget.reconcile.wiring import Watches
from llmbudget.reconcile.workloads import follow_workloads
from llmbudget.telemetry.operator_metrics import LEADER, REGISTRY, ReadinessCollector

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 15.0
"""Between two looks at which objects there are: five hundred are a request."""
_SETTLE_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 5.0
_NOT_SERVED: Final = (
    f"the cluster does not know {BUDGETS.plural} and {PROVIDERS.plural} of {BUDGETS.api_version}:"
    " install the CRDs (kubectl apply --server-side -k crds), then start the operator again"
)


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
    api_servers: tuple[tuple[str, int], ...]
    """Where gateways reach the API server; none: to be found out."""
    local_gateways: Path | None
    health_port: int
    identity: str
    """Its name in the election: a process that is started again leads at once under the same."""


async def run(options: Options) -> None:
    """Wait for the Lease, then reconcile until SIGTERM or SIGINT.

    Raises:
        ApiError: the operator has no right to list the resources.
        OperatorEnded: the process is to be started again.
    """
    # The Lease is renewed by a connection of its own, which no other request keeps waiting.
    cluster, electing = _cluster(options), _cluster(options)
    health = Health(clusterwide=not options.installation.namespaces)
    stop = asyncio.Event()
    LEADER.labels(LEASE_NAME).set(0)
    async with cluster, electing, serve_health(health, options.health_port):
        election = Election(
            electing, options.installation.namespace, options.identity, renewed=health.written
        )
        await _until(stop, election.acquire())
        if stop.is_set():
            return
        try:
            await _until(stop, election.hold(), _lead(cluster, options, health, stop))
        except LeaseLost as error:
            raise OperatorEnded(str(error)) from None
        finally:
            await election.release()
    if not stop.is_set():
        raise OperatorEnded("a part of the operator ended by itself: see the log above")


def _cluster(options: Options) -> Cluster:
    if options.kubeconfig:
        return Cluster.from_kubeconfig(options.kubeconfig)
    return Cluster.in_cluster(options.service_account)


async def _lead(cluster: Cluster, options: Options, health: Health, stop: asyncio.Event) -> None:
    """List everything, then watch it and work on it."""
    controller = Controller(
        cluster,
        options.installation,
        api_servers=await _api_servers(cluster, options),
        local_gateways=options.local_gateways,
        instance=f"{socket.gethostname()}-{os.getpid()}",
        health=health,
    )
    await _list_all(controller)
    found = {"budgets": len(controller.store.budgets), "providers": len(controller.store.providers)}
    log.info("listed", extra={"fields": found})
    watches = Watches(controller, health, stop, options.installation.namespaces)
    with _measured(controller):
        await _first_end(
            controller.run(),
            watches.run(),
            keep_listing(controller, watches.relisted),
            follow_workloads(cluster, options.installation.namespaces, controller.put_target),
        )


@contextlib.contextmanager
def _measured(controller: Controller) -> Iterator[None]:
    """Let the metrics tell of what this process leads."""
    leader, readiness = LEADER.labels(LEASE_NAME), ReadinessCollector(controller.store.readiness)
    REGISTRY.register(readiness)
    leader.set(1)
    try:
        yield
    finally:
        leader.set(0)
        REGISTRY.unregister(readiness)


async def _api_servers(cluster: Cluster, options: Options) -> tuple[tuple[str, int], ...]:
    """Tell where the API server is, where its EndpointSlices may not be read: none else.

    Raises:
        ApiError: it can't be asked.
        OperatorEnded: it doesn't say.
    """
    if options.api_servers or not options.installation.namespaces:
        return options.api_servers
    found = await cluster.server_address()
    if found is None:
        raise OperatorEnded(
            "the API server doesn't say at which address it is: name it by --api-server"
        )
    return (found,)


async def _list_all(controller: Controller) -> None:
    """Know all resources before the first is reconciled; an outage is waited out.

    Raises:
        ApiError: the operator has no right to list them.
        OperatorEnded: the CRDs are not installed.
    """
    while True:
        try:
            await controller.relist()
            await controller.find_leftovers()
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise OperatorEnded(_NOT_SERVED) from None
            if error.status == HTTPStatus.FORBIDDEN:
                raise
            log.warning("listing: %s", error)
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            return


async def keep_listing(controller: Controller, relisted: asyncio.Event) -> None:
    """Compare what is known with what is there: with all of it now and then, and otherwise with
    what objects there are, in which version. A watch may be silent, and kopf does not tell what was
    deleted in a gap."""
    whole_at = time.monotonic() + RESYNC_SECONDS
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await relisted.wait()
        await asyncio.sleep(_SETTLE_SECONDS)
        relisted.clear()
        whole = time.monotonic() >= whole_at
        try:
            await controller.relist(gone_only=not whole)
        except ApiError as error:
            log.warning("listing: %s", error)
            relisted.set()
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            if whole:
                whole_at = time.monotonic() + RESYNC_SECONDS


async def _until(stop: asyncio.Event, *works: Awaitable[None]) -> None:
    """Run until a signal comes, or until one of them ends or fails."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await _first_end(*works, _stopped(stop))


async def _stopped(stop: asyncio.Event) -> None:
    await stop.wait()


async def _first_end(*works: Awaitable[None]) -> None:
    """Run all until one ends, and then end the others.

    Raises:
        What the first that ended raised.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        # Kopf takes every task along when it ends.
        if not task.cancelled():
            task.result()
