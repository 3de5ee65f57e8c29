"""Crossed thresholds, told: an Event, a notice to people, and only then the acknowledgement.

The Event's name comes from the action, so that there is one, whoever dies or acts beside us; who
made it tells people. A notice comes twice only where that one dies between its delivery and the
acknowledgement: none is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from llmbudget.api.budget import Action
from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import SECRETS
from llmbudget.contract.events import ActionEvent
from llmbudget.decide.world import Budget
from llmbudget.notify.channels import deliver, urls_of
from llmbudget.notify.notice import notice_of
from llmbudget.reconcile.recorder import Recorder
from llmbudget.reconcile.store import Store
from llmbudget.reconcile.streams import MOST_ACTIONS, Streams

log = logging.getLogger(__name__)

_MOST_DONE: Final = 10_000
_GRAVE: Final = (Action.EXECUTIVE_INTERVENTION, Action.ENFORCE_STRICT_DOWNGRADE)


class Actions:
    """Carries out what gateways report. What fails is tried again by the queue."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        streams: Streams,
        recorder: Recorder,
        private_hosts: Collection[str],
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._streams = streams
        self._recorder = recorder
        self._private_hosts = private_hosts
        self._due: dict[str, dict[str, ActionEvent]] = {}
        """By root and id."""
        self._told: dict[str, set[str]] = {}
        """Actions whose Event is written, and the channels that have taken their notice."""
        self._done: dict[str, None] = {}
        """Actions acknowledged last: another gateway may not have heard of it yet."""

    def take(self, root: str, event: ActionEvent) -> str | None:
        """Take an action over; return its key for the queue. None: its gateway has left too many
        unacknowledged, and tells of it again when it is followed anew."""
        due = self._due.setdefault(root, {})
        if event.id not in due and len(due) >= MOST_ACTIONS:
            return None
        due[event.id] = event
        return f"{root}#{event.id}"

    def forget(self, root: str, event: ActionEvent) -> None:
        """It is acknowledged: whoever told of it, nothing is left to do."""
        self._drop(f"{root}#{event.id}")

    def _drop(self, key: str) -> None:
        root, _, action_id = key.partition("#")
        due = self._due.get(root, {})
        due.pop(action_id, None)
        if not due:
            self._due.pop(root, None)
        self._told.pop(key, None)

    async def carry_out(self, key: str) -> None:
        """Tell of one action.

        Raises:
            NotDelivered, Claimed, ApiError, GatewayError: to be tried again.
        """
        root, _, action_id = key.partition("#")
        event = self._due.get(root, {}).get(action_id)
        if event is None or key in self._done:
            self._drop(key)
            return
        budget = self._member(root, event.account)
        if budget is not None:
            if key not in self._told:
                await self._recorder.record_once(
                    event.id,
                    budget,
                    "ThresholdCrossed",
                    event.action.value,
                    notice_of(event).body,
                    warning=event.action in _GRAVE,
                )
                self._told[key] = set()
            await self._notify(root, budget, event, self._told[key])
        if root in self._store.budgets:
            await self._streams.acknowledge(root, event.id)
        self._drop(key)
        self._done[key] = None
        if len(self._done) > _MOST_DONE:
            del self._done[next(iter(self._done))]

    def _member(self, root: str, account: str | None) -> Budget | None:
        """Find a budget of the tree that a gateway may speak for: what only claims to belong to it,
        or belongs to another, is none."""
        if account is None or self._store.forest.roots.get(account) != root:
            return None
        return self._store.budgets.get(account)

    async def _notify(self, root: str, budget: Budget, event: ActionEvent, done: set[str]) -> None:
        """Send a notice, by the Secret of the nearest budget of the path that names one."""
        holder: Budget | None = budget
        while holder is not None and holder.spec.notifications is None:
            holder = self._member(root, holder.parent)
        if holder is None or holder.spec.notifications is None:
            return
        name = holder.spec.notifications.secret_ref.name
        secret = await self._cluster.get(SECRETS, holder.namespace, name)
        if secret is None:
            fields = {"budget": budget.account, "secret": f"{holder.namespace}/{name}"}
            log.warning("there is no notifications Secret", extra={"fields": fields})
            return
        note = notice_of(event)
        count = await deliver(note, urls_of(secret, note.recipients), done, self._private_hosts)
        told = {"budget": budget.account, "action": event.action.value, "channels": count}
        log.info("notified", extra={"fields": told})
