"""One root budget at a time: gather → decide → render → apply, and then the status.

Three queues share the work. `roots` reconciles the whole of a root budget; the others only write
what the gateway's ledger says and move targets: `transitions` at once, `figures` now and then, so
that no downgrade waits behind other budgets' cents.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from llmbudget.api.conditions import Reason
from llmbudget.api.meta import LABEL_BUDGET, LABEL_BUDGET_NAMESPACE, account_name
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import BUDGETS, CLUSTER_ROLE_BINDINGS, PROVIDERS
from llmbudget.clients.watch_events import Place, version_of
from llmbudget.contract.config import GatewayConfig
from llmbudget.contract.events import ActionEvent
from llmbudget.decide.pace import Pace
from llmbudget.decide.validity.chain import findings
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.world import Installation, World
from llmbudget.reconcile import streams
from llmbudget.reconcile.actions import Actions
from llmbudget.reconcile.apply import OwnerGone, apply_children
from llmbudget.reconcile.certificates import Certificates
from llmbudget.reconcile.gather import SecretReader, gather, keys_for_environment
from llmbudget.reconcile.health import Health
from llmbudget.reconcile.live import SELECTOR, Live, account_of
from llmbudget.reconcile.memory import keep_for_good
from llmbudget.reconcile.queue import Failure, WorkQueue
from llmbudget.reconcile.recorder import Recorder
from llmbudget.reconcile.status import Situation
from llmbudget.reconcile.statuses import Statuses
from llmbudget.reconcile.store import Store
from llmbudget.reconcile.streams import Streams
from llmbudget.render import names
from llmbudget.render.children import children
from llmbudget.render.gateway_config import gateway_config, left_out

log = logging.getLogger(__name__)

RESYNC_SECONDS: Final = 300.0
"""How often a root is looked at again for what no watch tells, such as a Secret's labels."""
RECHECK_SECONDS: Final = 5.0
"""The same, while something is wrong that people are about to mend."""
_ROOT_WORKERS: Final = 32
"""The API server's answers are what a round waits for."""
_TRANSITION_WORKERS: Final = 32
"""Each moves a budget's targets: three answers of the API server, while others' wait."""
_FIGURE_WORKERS: Final = 8
_ACTION_WORKERS: Final = 16
"""A channel that does not answer holds one up until it gives up."""
_FIGURES_SECONDS: Final = 1.0
"""How long the figures of a status may be old, at least; transitions are told at once."""
_FIGURES_A_SECOND: Final = 100
"""Trees whose figures are written in a second, at most: with 1,000 active ones each waits ten."""

_TRANSITIONS: Final = (10, 1.0)
"""How many transitions of one account are told at once, and in how many seconds one more: a gateway
that goes back and forth keeps nobody busy."""

_LASTING: Final = frozenset({400, 401, 403, 404, 405, 413, 422})
"""Refusals that trying again does not mend; conflicts and outages pass by themselves."""

_PATIENCE: Final = 6
"""Tries that any other refusal may take, before it is told."""

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Read this machine's clock."""
    return datetime.now(UTC)


class Controller:
    """Reconciles all root budgets."""

    def __init__(
        self,
        cluster: Cluster,
        installation: Installation,
        *,
        api_servers: tuple[tuple[str, int], ...] = (),
        local_gateways: Path | None,
        instance: str,
        health: Health,
        clock: Clock = utc_now,
    ) -> None:
        self._cluster = cluster
        self._health = health
        self._installation = installation
        self._clock = clock
        self.store = Store(health.written)
        self._roots = WorkQueue("roots", self._look, workers=_ROOT_WORKERS, failed=self._report)
        self._transitions = WorkQueue("transitions", self._write, workers=_TRANSITION_WORKERS)
        self._figures = WorkQueue("figures", self._write, workers=_FIGURE_WORKERS)
        clusterwide = not installation.namespaces
        self._live = Live(
            cluster, self.look_at, self.look_at_all, clusterwide=clusterwide, servers=api_servers
        )
        self._streams = Streams(
            *(cluster, installation.service_account, local_gateways),
            *(self._belongs, self._heard, self._acted),
        )
        self._secrets = SecretReader(cluster)
        self._certificates = Certificates(cluster, self._live, installation.namespace, clock)
        recorder = Recorder(cluster, instance)
        self._actions = Actions(
            cluster, self.store, self._streams, recorder, installation.private_hosts
        )
        self._action_queue = WorkQueue("actions", self._actions.carry_out, workers=_ACTION_WORKERS)
        self._statuses = Statuses(cluster, self.store, recorder, clock)
        self._situations: dict[str, tuple[World, tuple[Finding, ...], GatewayConfig | None]] = {}
        self._written_at: dict[str, float] = {}
        self._pace = Pace(*_TRANSITIONS)
        self._unseen: set[str] = set()
        self._begun = 0.0
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One writer of a tree's targets and statuses at a time: all three queues may want to."""

    async def run(self) -> None:
        """Work until cancelled."""
        self._unseen = {*self.store.budgets, *self.store.invalid}
        self._begun = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                queues = (self._roots, self._transitions, self._figures, self._action_queue)
                for queue in queues:
                    group.create_task(queue.run())
        finally:
            await self._streams.close()
            await self._live.close()

    def look_at(self, account: str) -> None:
        """Something about a budget, or a child of it, may have changed."""
        self._roots.add(self.store.forest.roots.get(account, account))

    def look_at_all(self) -> None:
        """Something that every budget depends on may have changed."""
        for root in self.store.forest.trees:
            self._roots.add(root)

    async def _look(self, account: str) -> None:
        """Reconcile, and say when every budget that was there at the start has had its turn."""
        try:
            await self._reconcile(account)
        finally:
            if account in self._unseen:
                self._unseen.discard(account)
                if not self._unseen:
                    seconds = round(time.monotonic() - self._begun, 1)
                    log.info("all looked at", extra={"fields": {"seconds": seconds}})
                    keep_for_good()

    async def _reconcile(self, account: str) -> None:
        store = self.store
        root = store.forest.roots.get(account)
        if root is None:
            await self._outside(account)
            return
        if root != account:
            self._roots.add(root)
            await self._sweep(account)
            return
        if store.budgets[root].deleting:
            # Before anything is read that may be missing by now.
            async with self._locks[root]:
                await self._statuses.release(root)
            return
        world = await gather(
            self._secrets, store, self._live, self._installation, root, self._clock()
        )
        found = findings(world)
        fatal = any(finding.fatal for finding in found)
        config = None if fatal else gateway_config(world, found)
        serving = await self._certificates.serving(world)
        if config is not None:
            found = (*found, *left_out(world, config))
            keys = await keys_for_environment(self._cluster, world, found)
            wanted = children(world, found, config, keys, serving)
            try:
                outcome = await apply_children(self._cluster, self._live, world.root, wanted)
            except OwnerGone:
                gone = self.store.raw.get(("LLMBudget", root))
                if gone is not None:
                    self.drop("LLMBudget", gone)
                return
            if outcome.taken is not None:
                found = (*found, Finding(Reason.NAME_TAKEN, outcome.taken, account=root))
                # One that could not be written down would get another number each time.
                config = config if world.previous_config else None
        if serving.problem is not None:
            # Told once the money's changes are made: no certificate may hold them up.
            what = Finding(Reason.CERTIFICATE_MISSING, serving.problem, account=root)
            found = (*found, what)
        # It has been compared, and is long.
        self._situations[root] = (replace(world, previous_config=None), found, config)
        services = tuple(names.gateway(world.root, region) for region in names.regions(world))
        self._streams.follow(root, streams.Place(services, serving.tls, serving.bundle))
        await self._write(root)
        self._roots.add(root, RECHECK_SECONDS if found else RESYNC_SECONDS)

    async def _outside(self, account: str) -> None:
        """Handle a budget that is no part of a tree: gone, not readable, or rejected."""
        self._streams.forget(account)
        self._situations.pop(account, None)
        rejection = self.store.forest.rejected.get(account)
        if rejection is not None:
            if self.store.budgets[account].deleting:
                await self._statuses.release(account)
            else:
                await self._statuses.reject(account, rejection.reason, rejection.message)
        elif account in self.store.invalid:
            reason, message = Reason.INVALID_SPEC, self.store.invalid[account]
            if "deletionTimestamp" in self.store.raw["LLMBudget", account]["metadata"]:
                await self._statuses.release(account)
            else:
                await self._statuses.reject(account, reason, message)
        else:
            await self._statuses.put_back_orphans(account)
            await self._sweep(account, surely=True)
            self._locks.pop(account, None)
            self._written_at.pop(account, None)
            self._pace.forget(account)
            self._live.keep({members[0].namespace for members in self.store.forest.trees.values()})

    async def relist(self, *, gone_only: bool = False) -> None:
        """Read all resources, and find those that have gone: before the first is reconciled, since
        a root without its children would be rendered twice, and now and then. `gone_only`: those
        that are there are the watch's to tell, and only which they are is read.

        Raises:
            ApiError.
        """
        for kind in (PROVIDERS, BUDGETS):
            listed: set[Place] = set()
            versions: set[int] = set()
            for namespace in self._installation.namespaces or (None,):
                pages = self._cluster.pages(kind, namespace, metadata_only=gone_only)
                newest = 0
                async for items, version in pages:
                    versions.add(int(version))
                    for item in items:
                        metadata = item["metadata"]
                        listed.add((metadata["namespace"], metadata["name"]))
                        newest = max(newest, version_of(item))
                        if not gone_only:
                            self.put(kind.kind, item)
                self._health.listed(kind.kind, namespace, newest)
            for raw in self.store.missing_from(kind.kind, listed, min(versions)):
                self.drop(kind.kind, raw)

    async def find_leftovers(self) -> None:
        """Have every account looked at that has something in the whole cluster: its budget may
        have gone while no operator ran.

        Raises:
            ApiError: the bindings can't be listed.
        """
        if self._installation.namespaces:
            return  # nothing of theirs is in the whole cluster
        bindings, _ = await self._cluster.list(CLUSTER_ROLE_BINDINGS, label_selector=SELECTOR)
        for account in filter(None, map(account_of, bindings)):
            self._roots.add(account)

    async def _sweep(self, account: str, *, surely: bool = False) -> None:
        """Delete what a root had in the whole cluster, which no owner takes along: where it is
        known, or in any case."""
        if self._installation.namespaces or not (surely or self._live.of(account)):
            return
        namespace, _, name = account.partition("/")
        labels = f"{SELECTOR},{LABEL_BUDGET}={name},{LABEL_BUDGET_NAMESPACE}={namespace}"
        bindings, _ = await self._cluster.list(CLUSTER_ROLE_BINDINGS, label_selector=labels)
        for found in (binding["metadata"] for binding in bindings):
            await self._cluster.delete(CLUSTER_ROLE_BINDINGS, None, found["name"], uid=found["uid"])

    async def _write(self, root: str) -> None:
        """Move targets and write the statuses of a tree, as its gateway says now."""
        known = self._situations.get(root)
        if known is None:
            return
        world, found, config = known
        gateway = self._streams.state(root)
        if not gateway.asked and self._statuses.are_current(world):
            # What was known before a restart stands until the gateway has answered, or has not.
            return
        self._written_at[root] = time.monotonic()
        async with self._locks[root]:
            if self.store.budgets.get(root) is None or self.store.budgets[root].deleting:
                return
            await self._statuses.write_tree(Situation(world, found, config, gateway))
        for budget in world.budgets:
            if self.store.forest.roots.get(budget.account) != root:
                # It left the tree meanwhile: what was written of it may be old.
                self._roots.add(budget.account)

    def _belongs(self, root: str, account: str) -> bool:
        return self.store.forest.roots.get(account) == root

    def _heard(self, root: str, changed: str | None) -> None:
        """A gateway said something: transitions are told at once, unless one account has too many
        to be true, figures now and then."""
        if changed is not None:
            self._transitions.add(root, self._pace.wait(changed, time.monotonic()))
            return
        interval = max(_FIGURES_SECONDS, len(self._situations) / _FIGURES_A_SECOND)
        since = time.monotonic() - self._written_at.get(root, 0.0)
        self._figures.add(root, max(0.0, interval - since))

    def _acted(self, root: str, event: ActionEvent) -> None:
        if self.store.forest.roots.get(event.account, root) != root:
            fields = {"budget": root, "account": event.account}
            log.warning("a gateway speaks for another's account", extra={"fields": fields})
            return
        if event.acknowledged:
            self._actions.forget(root, event)
        else:
            key = self._actions.take(root, event)
            if key is not None:
                self._action_queue.add(key)

    async def _report(self, account: str, failure: Failure) -> None:
        """Show in the status what keeps a budget from being reconciled, and when it is tried
        again."""
        said = _explained(account, failure)
        if said is not None:
            pause = max(1, round(failure.pause))
            again = f"It is tried again in {pause} s (attempt {failure.tries + 1})."
            await self._statuses.reject(account, said[0], f"{said[1]} {again}")

    def put(self, kind: str, raw: dict[str, Any]) -> None:
        """A budget or a provider is, or has become, like this."""
        metadata = raw["metadata"]
        account = account_name(metadata["namespace"], metadata["name"])
        if kind == "LLMProvider":
            if self.store.put_provider(raw):
                for root in self.store.users_of(self.store.providers[account]):
                    self._roots.add(root)
            return
        root_before = self.store.forest.roots.get(account)
        if self.store.put_budget(raw):
            self._roots.add(account)
            if root_before is not None:
                self._roots.add(root_before)
            for orphan in self.store.forest.rejected:
                self._roots.add(orphan)

    def put_target(self, raw: dict[str, Any], gone: bool) -> None:
        """A Deployment that consents to a budget is, or has become, like this."""
        account = self.store.put_target(raw, gone=gone)
        if account is None:
            return
        if account in self.store.budgets or self.store.changed_targets(account):
            self.look_at(account)

    def drop(self, kind: str, raw: dict[str, Any]) -> None:
        """A budget or a provider is gone."""
        metadata = raw["metadata"]
        account = account_name(metadata["namespace"], metadata["name"])
        if kind == "LLMProvider":
            provider = self.store.providers.get(account)
            affected = list(self.store.users_of(provider)) if provider else []
        else:
            root = self.store.forest.roots.get(account)
            affected = [
                account,
                *(self.store.forest.trees.get(root, ()) and [root] if root else []),
            ]
            affected += [b.account for b in self.store.forest.trees.get(account, ())]
        self.store.drop(kind, raw)
        # Those that it leaves without a path to a root have to be told.
        for key in (*affected, *self.store.forest.rejected):
            self._roots.add(key)


def _explained(account: str, failure: Failure) -> tuple[Reason, str] | None:
    """Say what a failure is; None: it may pass by itself."""
    error = failure.error
    if not isinstance(error, ApiError):
        kind = type(error).__name__
        return Reason.API_ERROR, f"The operator failed ({kind}): its log says more."
    lasting = error.status in _LASTING or failure.tries >= _PATIENCE
    if not error.status or not lasting:
        return None
    message = f"The Kubernetes API refused: {error}."
    if error.status == 403 and " cannot " in error.message:
        namespace, _, _ = account.partition("/")
        message += (
            " Let the operator manage this namespace:"
            f" kubectl apply -n {namespace} -k manifests/namespace (without cluster rights:"
            " -k manifests/namespaced/roles)."
        )
    return Reason.API_ERROR, message
