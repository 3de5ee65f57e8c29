"""Whole gateways, and who calls them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from tests.simulation.database import SimulatedLedger
from tests.simulation.provider import SimulatedProvider
from tests.simulation.story import Mortal
from tests.support.records import call_story

from llmbudget.contract.config import GatewayConfig
from llmbudget.decide.catalogue import catalogues
from llmbudget.decide.consumers import Consumers
from llmbudget.gateway.admission import Admission
from llmbudget.gateway.call import Calls
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.protocols.chat import CHAT
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.refusals import refusal_of
from llmbudget.gateway.routes import Routes
from llmbudget.gateway.upstream import Upstream
from llmbudget.gateway.wire import CallerGone, Exchange, Headers, Request
from llmbudget.ledger.interface import Hold, HoldRequest, LedgerError

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass(slots=True)
class Caller:
    """One request and what was answered, in place of the server's objects."""

    body_bytes: bytes
    headers: dict[str, str]
    leaves_after: int | None
    """Pieces of a stream after which the caller hangs up."""
    status: int = 0
    answered: dict[str, str] = field(default_factory=dict)
    got: bytes = b""

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        self.status, self.answered, self.got = status, dict(headers), body

    def response_stream(self, status: int, headers: Headers) -> Caller:
        self.response_bytes(status, headers, b"")
        return self

    async def send_bytes(self, data: bytes) -> None:
        if self.leaves_after is not None:
            self.leaves_after -= 1
            if self.leaves_after < 0:
                raise CallerGone
        self.got += data


class _Watched(SimulatedLedger):
    """Takes down under which hold a call is sent next."""

    sent_under: dict[str, str]

    async def hold(self, request: HoldRequest) -> Hold:
        granted = await super().hold(request)
        self.sent_under[str(request.task_id)] = granted.id
        return granted


class Gateway(Mortal):
    """One gateway process."""

    def __init__(self, world: World, name: str, config: GatewayConfig) -> None:
        super().__init__(world, name)
        self._world = world
        self.ledger = _Watched(world.database, self.process, world.loop, world.chance)
        self.ledger.sent_under = world.sent_under
        self._calls = Calls(self.ledger, Admission(self.ledger), Keys(world.keys, world.loop.time))
        self._config = config
        self.routes = self._route(config)
        self.ready = False
        world.loop.start(self.process, self._configure(config))

    def _route(self, config: GatewayConfig) -> Routes:
        world = self._world
        upstreams = {
            provider.name: SimulatedProvider(
                provider.name,
                {m.upstream_name: m.prices for m in provider.models if m.prices is not None},
                world.bill,
                world.sent_under.__getitem__,
                world.loop,
                world.chance,
            )
            for provider in config.providers
        }
        return Routes(
            config,
            Consumers(config.accounts),
            catalogues(config),
            cast("dict[str, Upstream]", upstreams),
        )

    def configure(self, config: GatewayConfig) -> None:
        """Take over a new configuration, as from the ConfigMap."""
        self.routes = Routes(
            config, Consumers(config.accounts), catalogues(config), self.routes.upstreams
        )
        self._world.loop.start(self.process, self._configure(config))

    async def _configure(self, config: GatewayConfig) -> None:
        while True:
            try:
                await self.ledger.configure(
                    config.accounts, time_zone=config.time_zone, generation=config.generation
                )
            except LedgerError:
                await asyncio.sleep(1.0)
            else:
                self.ready = True
                return

    async def serve(self, caller: Caller) -> None:
        """Answer a call, or break off when the gateway dies."""
        await self._do(self._serve(caller))

    async def _serve(self, caller: Caller) -> None:
        try:
            await self._answer(caller)
        except Refusal as refusal:
            caller.status = refusal.status
        except LedgerError as error:
            caller.status = refusal_of(error).status

    async def _answer(self, caller: Caller) -> None:
        routes = self.routes
        consumer = routes.consumers.match("apps", "agent", None)
        request, exchange = cast(Request, caller), cast(Exchange, caller)
        await self._calls.serve(
            CHAT,
            routes,
            consumer,
            request,
            caller.body_bytes,
            exchange,
            lambda _: None,
            call_story(),
        )
