"""Gateways of regions, as far as they count, and the calls that they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from tests.simulation.shared import REGION_SECONDS, SimulatedAuthority, SimulatedRegion
from tests.simulation.story import Mortal

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.ledger.interface import (
    AwaitingApproval,
    BudgetExceeded,
    Entry,
    EnvelopeClosed,
    EnvelopeRequest,
    HoldRequest,
    LedgerError,
    LedgerUnavailable,
    Settlement,
    UnknownAccount,
    UnknownEnvelope,
    UnknownHold,
)
from llmbudget.ledger.regions.lease import Lease
from llmbudget.ledger.regions.regional import RegionalLedger

if TYPE_CHECKING:
    from tests.simulation.regions import RegionsWorld

CENTRAL: Final = "central"
"""In place of a region: gateways that ask the authority for each call."""
FAR, NEAR = 0.25, 0.01
"""The longest way to the authority, and to the region's own database, in seconds."""
AGENT: Final = "apps/agent"
MOST: Final = 10**12
_REFUSALS: Final = (
    AwaitingApproval,
    BudgetExceeded,
    EnvelopeClosed,
    LedgerUnavailable,
    UnknownAccount,
    UnknownEnvelope,
)


@dataclass(slots=True)
class Call:
    """One call, and what its provider bills."""

    id: str
    account: str
    amount: int
    envelope: str | None = None
    answer: str = ""
    billed: int | None = None
    """None: it was not sent."""
    period: str = ""

    @property
    def within(self) -> int:
        """What is billed within the hold."""
        return min(self.billed or 0, self.amount)


class Gateway(Mortal):
    """One gateway process of a region."""

    def __init__(self, world: RegionsWorld, region: str, number: int) -> None:
        super().__init__(world, f"{region}-{number}")
        self._world = world
        self.region = region
        loop, chance = world.loop, world.chance
        self.authority = SimulatedAuthority(world.authority, self.process, loop, chance, FAR)
        self.links = [self.authority.courier]
        self.ledger: SimulatedAuthority | RegionalLedger = self.authority
        if region != CENTRAL:
            lease = Lease(REGION_SECONDS, loop.time)
            self.ledger = RegionalLedger(self.authority, self._open_region, region, lease)
        self.ready = False
        self.closed = False
        self._config = world.config
        self._configuring = asyncio.Lock()
        self.configure(world.config)

    def _open_region(self) -> SimulatedRegion:
        world = self._world
        database = world.databases[self.region]
        made = SimulatedRegion(database, self.process, world.loop, world.chance, NEAR)
        self.links.append(made.courier)
        return made

    @property
    def serves(self) -> bool:
        """Whether it can be asked."""
        return self.process.alive and self.ready and not self.closed

    def configure(self, config: tuple[int, tuple[AccountConfig, ...]]) -> None:
        """Take over a configuration, as from the ConfigMap."""
        self._config = config
        self._world.loop.start(self.process, self._configure())

    async def _configure(self) -> None:
        async with self._configuring:
            while not self.closed:
                generation, accounts = self._config
                try:
                    await self.ledger.configure(accounts, time_zone="UTC", generation=generation)
                except LedgerError:
                    await asyncio.sleep(1.0)
                else:
                    self.ready = True
                    return

    async def serve(self, call: Call) -> None:
        """Let a call be counted and sent, or break off when the gateway dies."""
        await self._do(self._serve(call))

    async def open(self, envelope: str, account: str, amount: int, seconds: float) -> bool:
        """Set money aside for a task; tell whether it was."""
        request = EnvelopeRequest(
            id=envelope,
            account=account,
            amount=Nano(amount),
            consumer=AGENT,
            users=(AGENT,),
            lifetime=timedelta(seconds=seconds),
            most_amount=Nano(MOST),
            most_open=MOST,
        )
        opened = False

        async def ask() -> None:
            nonlocal opened
            try:
                await self.ledger.open_envelope(request)
            except _REFUSALS:
                return
            opened = True

        await self._do(ask())
        return opened

    async def end(self, envelope: str) -> None:
        """Give back what a task left."""

        async def ask() -> None:
            try:
                await self.ledger.close_envelope(envelope, AGENT)
            except (LedgerUnavailable, UnknownEnvelope):
                return

        await self._do(ask())

    async def close(self) -> None:
        """End in order."""
        self.closed = True
        await self._do(self.ledger.close())
        self.kill()

    async def _serve(self, call: Call) -> None:
        chance, ledger = self._world.chance, self.ledger
        request = HoldRequest(
            *(call.id, call.account, Nano(call.amount), "north", "large"),
            consumer=AGENT,
            envelope=call.envelope,
        )
        try:
            hold = await ledger.hold(request)
        except _REFUSALS as refusal:
            call.answer = type(refusal).__name__
            return
        call.answer, call.period = "sent", hold.period
        if chance.random() < 0.1:
            await self._until_done(lambda: ledger.release(call.id))
            return
        dear = chance.random() < 0.03
        call.billed = chance.randint(0, call.amount + (call.amount // 2 if dear else 0))
        await asyncio.sleep(chance.choice((0.05, 0.5, 3.0, 20.0)))
        known = chance.random() < 0.9
        settlement = Settlement(Nano(call.billed) if known else None)
        await self._until_done(lambda: ledger.settle(call.id, settlement))

    async def _until_done(self, resolve: Callable[[], Awaitable[Entry]]) -> None:
        while not self.closed:
            try:
                await resolve()
            except UnknownHold:
                return  # It went with its database.
            except LedgerUnavailable:
                await asyncio.sleep(1.0)
            else:
                return
