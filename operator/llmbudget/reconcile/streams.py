"""The gateways' ledgers, followed: one stream for each root budget."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from llmbudget.api.meta import operator_audience
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.gateway import GatewayClient, GatewayError, Sessions
from llmbudget.contract.config import GATEWAY_PORT
from llmbudget.contract.events import (
    ActionEvent,
    AvailabilityEvent,
    BalanceEvent,
    SnapshotEvent,
    StreamEvent,
)
from llmbudget.render.names import pods_of

log = logging.getLogger(__name__)

_TOKEN_SECONDS: Final = 3600
_TOKENS_AT_ONCE: Final = 16
"""That are asked for: after a restart all gateways need one, and each request that finds no
connection free makes a new one."""
_RETRY_SECONDS: Final = (0.25, 10.0)
_LASTING_SECONDS: Final = 5.0
"""A stream that went on for so long was a good one."""
_BLIND_SECONDS: Final = 10.0
"""How long a gateway is followed that can't count money."""


MOST_ACTIONS: Final = 10_000
"""Crossed thresholds that a gateway may tell of."""


@dataclass(slots=True)
class GatewayState:
    """What one gateway said last."""

    asked: bool = False
    """It has answered once, or could not be reached once."""
    connected: bool = False
    """Its snapshot is complete and its stream is open."""
    problem: str = "no gateway has answered yet"
    config_generation: int | None = None
    """The configuration that it has acknowledged."""
    balances: dict[str, BalanceEvent] = field(default_factory=dict)
    actions: dict[str, ActionEvent] = field(default_factory=dict)
    ledger_problem: str | None = None
    """Why it can't count money; None: it can."""
    missing_keys: Mapping[str, str] = field(default_factory=dict)
    """Why the gateway lacks a key, by provider."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a root's gateways are, and how they are spoken to. Any one of them tells all."""

    services: tuple[str, ...]
    """Names of their Services, one a region."""
    tls: bool
    ca: str | None
    """Authorities of its certificate, in PEM; None: the public ones."""


Belongs = Callable[[str, str], bool]
"""Tells whether an account is one of a root's tree."""
Changed = Callable[[str, str | None], None]
"""Called with a root's account, and with that of which more than figures changed: the root's too
where it is the gateway itself. None: figures only."""
Acted = Callable[[str, ActionEvent], None]


class Streams:
    """Follows gateways and keeps what they said."""

    def __init__(
        self,
        cluster: Cluster,
        service_account: str,
        local_gateways: Path | None,
        belongs: Belongs,
        changed: Changed,
        acted: Acted,
    ) -> None:
        self._cluster = cluster
        self._namespace, _, self._service_account = service_account.partition("/")
        self._local_gateways = local_gateways
        self._belongs = belongs
        self._changed = changed
        self._acted = acted
        self._states: dict[str, GatewayState] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places: dict[str, Place] = {}
        self._asking = asyncio.Semaphore(_TOKENS_AT_ONCE)
        self._sessions = Sessions()
        self._turns: dict[str, int] = {}
        """How often another gateway of a root was taken."""

    def state(self, root: str) -> GatewayState:
        """Tell what a root's gateway said last."""
        return self._states.get(root) or GatewayState()

    def follow(self, root: str, place: Place) -> None:
        """Follow a root's gateway, unless it is being followed there."""
        before = self._places.get(root)
        if before == place:
            return
        moved = before is None or (before.services, before.tls) != (place.services, place.tls)
        state = GatewayState() if moved else self._states[root]
        self.forget(root)
        self._places[root] = place
        self._states[root] = state
        self._tasks[root] = asyncio.create_task(self._run(root, place))

    def forget(self, root: str) -> None:
        """Stop following."""
        task = self._tasks.pop(root, None)
        if task is not None:
            task.cancel()
        self._states.pop(root, None)
        self._places.pop(root, None)
        self._turns.pop(root, None)

    async def acknowledge(self, root: str, action_id: str) -> None:
        """Mark an action as done in its ledger.

        Raises:
            GatewayError, ApiError.
        """
        place = self._places.get(root)
        if place is None:
            raise GatewayError("the gateway is not followed now")
        client = self._client(root, place, self._turns.get(root, 0))
        try:
            await client.acknowledge(action_id)
        except GatewayError:
            self._turns[root] = self._turns.get(root, 0) + 1
            raise
        finally:
            await client.close()

    async def close(self) -> None:
        """Stop following all."""
        for root in list(self._tasks):
            self.forget(root)
        await self._sessions.close()

    async def _run(self, root: str, place: Place) -> None:
        first, longest = _RETRY_SECONDS
        pause, hurried = first, False
        while True:
            state = self._states[root]
            said, began = False, time.monotonic()
            try:
                client = self._client(root, place, self._turns.setdefault(root, 0))
                try:
                    async for event in self._patiently(state, client.events()):
                        said = True
                        self._take(root, state, event)
                finally:
                    await client.close()
                problem = "the gateway ended the stream"
            except (GatewayError, ApiError) as error:
                problem = str(error)
            except Exception as error:
                # The edge of one gateway's stream: whatever it sent, the others go on.
                log.exception("stream", extra={"fields": {"budget": root}})
                problem = f"its stream could not be read ({type(error).__name__})"
            self._turns[root] += 1
            if time.monotonic() - began >= _LASTING_SECONDS:
                pause, hurried = first, False
            if said and state.connected and not hurried:
                # Gateways are rolled and killed: another one is asked before anything is said.
                # Once: whoever only begins to speak must not keep the operator busy.
                hurried = True
                continue
            if state.connected or state.problem != problem:
                state.asked, state.connected, state.problem = True, False, problem
                log.info("gateway: %s", problem, extra={"fields": {"budget": root}})
                self._changed(root, root)
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _patiently(
        self, state: GatewayState, events: AsyncIterator[StreamEvent]
    ) -> AsyncIterator[StreamEvent]:
        """Follow a gateway, but leave one that can't count money: another may."""
        since: float | None = None
        async for event in events:
            yield event
            if state.ledger_problem is None:
                since = None
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > _BLIND_SECONDS:
                return

    def _take(self, root: str, state: GatewayState, event: StreamEvent) -> None:
        transition, about = False, root
        if isinstance(event, SnapshotEvent):
            transition = True
            state.asked, state.connected, state.problem = True, True, ""
            periods = {balance.period for balance in state.balances.values()}
            past = [a.id for a in state.actions.values() if a.period not in periods]
            for action_id in past:
                del state.actions[action_id]
        elif isinstance(event, BalanceEvent):
            if not self._belongs(root, event.account):
                # It has left the tree, or was never of it: there may be any number of them.
                return
            before = state.balances.get(event.account)
            state.balances[event.account] = event
            state.config_generation = event.config_generation
            transition, about = before is None or _is_transition(before, event), event.account
        elif isinstance(event, ActionEvent):
            transition = event.id not in state.actions
            if transition and len(state.actions) >= MOST_ACTIONS:
                raise GatewayError(f"the gateway tells of more than {MOST_ACTIONS} actions")
            state.actions[event.id] = event
            self._acted(root, event)
        elif isinstance(event, AvailabilityEvent):
            transition = state.ledger_problem != event.problem
            state.ledger_problem = event.problem
        else:
            missing = {name: event.reasons.get(name, "") for name in event.missing}
            transition = state.missing_keys != missing
            state.missing_keys = missing
        if state.connected:
            self._changed(root, about if transition else None)

    def _client(self, root: str, place: Place, turn: int) -> GatewayClient:
        """Speak to one of a root's gateways, to another each turn."""
        token = _Tokens(self, root).token
        if self._local_gateways is not None:
            url = self._local_url(self._local_gateways, root, turn)
            return GatewayClient(url, token, place.ca, sessions=self._sessions)
        namespace, _, _ = root.partition("/")
        service = place.services[turn % len(place.services)]
        scheme = "https" if place.tls else "http"
        # Pods that are not ready too: they say why.
        url = f"{scheme}://{pods_of(service)}.{namespace}.svc:{GATEWAY_PORT}"
        name = f"{service}.{namespace}.svc"
        return GatewayClient(url, token, place.ca, name=name, sessions=self._sessions)

    def _local_url(self, folder: Path, root: str, turn: int) -> str:
        """Find a gateway of this machine by the file in which it is announced."""
        try:
            text = (folder / f"{root.replace('/', '_')}.json").read_text()
            pods = json.loads(text)["pods"]
            return str(pods[turn % len(pods)]["url"])
        except (OSError, ValueError, LookupError, ZeroDivisionError):
            raise GatewayError("no local gateway has announced itself") from None

    async def request_token(self, root: str) -> tuple[str, datetime]:
        """Make a token for one gateway."""
        audience = operator_audience(root)
        async with self._asking:
            return await self._cluster.create_token(
                self._namespace, self._service_account, audience, _TOKEN_SECONDS
            )


class _Tokens:
    """The operator's token for one gateway, made when it is needed."""

    def __init__(self, streams: Streams, root: str) -> None:
        self._streams = streams
        self._root = root
        self._known: tuple[str, datetime] | None = None

    async def token(self) -> str:
        if self._known is None or datetime.now(UTC) > self._known[1] - timedelta(minutes=5):
            self._known = await self._streams.request_token(self._root)
        return self._known[0]


def _is_transition(before: BalanceEvent, now: BalanceEvent) -> bool:
    """Tell whether more than figures changed: this is told at once."""
    return (
        before.period != now.period
        or before.level != now.level
        or before.awaiting_approval != now.awaiting_approval
        or before.config_generation != now.config_generation
        or before.cap_nano != now.cap_nano
        or _exhausted(before) != _exhausted(now)
    )


def _exhausted(event: BalanceEvent) -> bool:
    return event.cap_nano is not None and event.spent_nano >= event.cap_nano
