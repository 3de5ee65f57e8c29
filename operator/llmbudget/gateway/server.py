"""The gateway's process: what it is made of, how it starts and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from llmbudget.api.budget import IdentityMode
from llmbudget.clients.cluster import Cluster
from llmbudget.gateway.admission import Admission
from llmbudget.gateway.analytics import Analytics
from llmbudget.gateway.app import App
from llmbudget.gateway.call import Calls
from llmbudget.gateway.clock import TrustedClock
from llmbudget.gateway.configuration import Configuration
from llmbudget.gateway.datadog import Datadog
from llmbudget.gateway.identity import Identify, Identities
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.limits import ConsumerLimits
from llmbudget.gateway.memory import RequestMemory, share_of_memory
from llmbudget.gateway.offline import OfflineIdentities
from llmbudget.gateway.probes import Monitoring
from llmbudget.gateway.retention import Retention
from llmbudget.gateway.serving import Server, renew
from llmbudget.ledger.interface import Ledger
from llmbudget.ledger.sqlite import SqliteLedger
from llmbudget.telemetry.logs import CallLog
from llmbudget.telemetry.spans import Spans

log = logging.getLogger(__name__)

LEDGER_FILE: Final = "ledger.db"
GARBAGE: Final = (50_000, 20, 50)
"""Thresholds of the collector of reference cycles: a call makes hundreds of objects and hardly a
cycle, so that by default a tenth of the time goes into looking for some."""

Result = TypeVar("Result")
_POLL_SECONDS: Final = 0.05
_CLOSING_SECONDS: Final = 2.0
"""How long calls that are cut off may take to be charged, and connections to close."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where everything is: the command's options."""

    namespace: str
    config_map: str
    keys: Path
    vault: Path
    ca: Path
    ledger: Path | None
    """Folder of the embedded ledger; None: it is shared, in `postgres`."""
    postgres: Path | None
    """File with the connection string of the shared ledger."""
    region: str | None
    region_postgres: Path | None
    """File with the connection string of the region's own database; None: all calls are counted in
    `postgres`."""
    budget: str
    """Root budget `namespace/name`, whose ledger it is."""
    service_account: Path
    posthog_key: Path
    datadog_key: Path
    tls: Path | None
    """Folder with the certificate and its key; None: plain HTTP."""
    host: str
    port: int
    grace_seconds: float
    """For calls to end."""
    drain_seconds: float
    """How long calls are still taken when the process is told to stop: other gateways serve, and
    whoever sends calls has to learn of them."""


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then end in order.

    Raises:
        LedgerUnavailable: the ledger can't be opened.
        KeyError, OSError: this is no pod, or a folder is missing.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster.in_cluster(settings.service_account))
        clock = await _first(TrustedClock.confirmed(cluster), stop)
        if clock is None:
            return
        ledger = await stack.enter_async_context(_opened(settings, clock))
        app = _assemble(settings, cluster, ledger, clock, stack)
        gc.freeze()
        gc.set_threshold(*GARBAGE)
        made = Server(app, settings.host, settings.port, settings.tls)
        made.listen()
        serving = asyncio.create_task(made.serve())
        if settings.tls is not None:
            _start(renew(made, settings.tls), stack)
        log.info("serving", extra={"fields": {"address": f"{settings.host}:{settings.port}"}})
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
            raise OSError(f"the server on port {settings.port} ended by itself")
        await _finish(app, settings)
        made.stop()
        # A caller that does not read keeps its connection for as long as it likes.
        await asyncio.wait({serving}, timeout=_CLOSING_SECONDS)


@contextlib.asynccontextmanager
async def _opened(settings: Settings, clock: TrustedClock) -> AsyncIterator[Ledger]:
    ledger: Ledger
    if settings.region_postgres is not None:
        from llmbudget.ledger.regions.regional import RegionalLedger

        assert settings.postgres is not None
        assert settings.region is not None
        ledger = RegionalLedger.in_postgres(
            settings.postgres, settings.region_postgres, settings.budget, settings.region
        )
    elif settings.postgres is not None:
        # Only now: its packages take 30 MB, which a gateway with a file of its own does without.
        from llmbudget.ledger.postgres import PostgresLedger

        # It need not be there yet: the process waits for it, and says so.
        ledger = PostgresLedger(settings.postgres, settings.budget)
    else:
        assert settings.ledger is not None
        ledger = await SqliteLedger.open(settings.ledger / LEDGER_FILE, clock)
    try:
        yield ledger
    finally:
        await ledger.close()


def _assemble(
    settings: Settings,
    cluster: Cluster,
    ledger: Ledger,
    clock: TrustedClock,
    stack: contextlib.AsyncExitStack,
) -> App:
    """Put the parts together, and start those that follow something."""
    keys = Keys(settings.keys, vault=settings.vault)
    spans = Spans(settings.budget)
    stack.push_async_callback(spans.close)
    call_log = CallLog()
    stack.callback(call_log.flush)
    configuration = Configuration(
        cluster, ledger, keys, spans, settings.namespace, settings.config_map, settings.ca
    )
    analytics = Analytics(ledger, configuration, settings.posthog_key)
    monitoring = Monitoring(cluster, ledger)
    datadog = Datadog(configuration, monitoring, settings.datadog_key, settings.budget)
    stack.push_async_callback(datadog.close)
    followers = [configuration.follow(), clock.follow(cluster), analytics.follow()]
    followers.append(datadog.follow())
    followers.append(Retention(ledger, configuration).follow())
    for follower in followers:
        _start(follower, stack)

    @cache
    def identify(mode: IdentityMode, audience: str) -> Identify:
        kind = OfflineIdentities if mode is IdentityMode.OFFLINE else Identities
        return kind(cluster, audience).identify

    return App(
        configuration=configuration,
        ledger=ledger,
        keys=keys,
        calls=Calls(ledger, Admission(ledger), keys),
        identify=identify,
        monitoring=monitoring,
        limits=ConsumerLimits(asyncio.get_running_loop().time),
        memory=RequestMemory(share_of_memory()),
        clock=clock,
        engine="sqlite" if settings.postgres is None else "postgres",
        spans=spans,
        call_log=call_log,
    )


def _start(follower: Coroutine[Any, Any, None], stack: contextlib.AsyncExitStack) -> None:
    task = asyncio.create_task(follower)
    task.add_done_callback(_end_with)
    stack.callback(task.cancel)


async def _first(work: Coroutine[Any, Any, Result], stop: asyncio.Event) -> Result | None:
    """Wait for something unless the process is asked to stop first, which is None."""
    done, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({done, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if done.done():
        return done.result()
    done.cancel()
    return None


def _end_with(task: asyncio.Task[None]) -> None:
    """A follower that dies takes the process along: half a gateway is none."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a follower ended", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


async def _finish(app: App, settings: Settings) -> None:
    """Send callers to other gateways, then take no new calls, and let those under way end."""
    log.info("stopping", extra={"fields": {"calls": app.calls_running}})
    loop = asyncio.get_running_loop()
    if settings.drain_seconds:
        app.draining = True
        await asyncio.sleep(settings.drain_seconds)
    deadline = loop.time() + settings.grace_seconds
    # With other gateways beside, a late caller is served while there is time anyhow.
    app.stopping = not app.draining
    while app.calls_running and loop.time() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
    if app.calls_running:
        log.warning("calls cut off", extra={"fields": {"calls": app.calls_running}})
        app.end_calls()
    while app.calls_running and loop.time() < deadline + _CLOSING_SECONDS:
        await asyncio.sleep(_POLL_SECONDS)
    app.stopping = app.finished = True
