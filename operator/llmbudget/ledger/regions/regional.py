"""The ledger of a region's gateways: calls are counted in the region, all else at the authority."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.contract.events import LedgerEvent
from llmbudget.ledger.interface import (
    AwaitingApproval,
    Balance,
    BudgetExceeded,
    Entry,
    Envelope,
    EnvelopeRequest,
    Hold,
    HoldRequest,
    LedgerError,
    LedgerUnavailable,
    Settlement,
    Status,
)
from llmbudget.ledger.postgres.owners import LEASE_SECONDS
from llmbudget.ledger.records import Holder
from llmbudget.ledger.regions import IN_REGION
from llmbudget.ledger.regions.asking import Asking
from llmbudget.ledger.regions.lease import REGION_SECONDS, Lease
from llmbudget.ledger.regions.ledgers import AuthorityLedger, RegionLedger
from llmbudget.ledger.regions.messages import TablesReplaced
from llmbudget.ledger.regions.shipping import PAUSE_SECONDS, Shipping

_TRIES: Final = 8
"""How often a call asks anew where others were given, or took, what it asked for."""

log = logging.getLogger(__name__)


class RegionalLedger:
    """A `Ledger` that spends from slices; it belongs to the event loop that made it. Like a
    `PostgresLedger` it is one at once, whether or not the databases can be used."""

    def __init__(
        self,
        authority: AuthorityLedger,
        open_region: Callable[[], RegionLedger],
        name: str,
        lease: Lease,
    ) -> None:
        self.name = name
        """Of the region."""
        self._authority = authority
        self._open = open_region
        self._region = self._open()
        self._lease = lease
        self._paths: dict[str, tuple[str, ...]] = {}
        self._asking: Asking | None = None
        self._shipping: Shipping | None = None
        self._follower: asyncio.Task[None] | None = None
        self._accounts: Sequence[AccountConfig] = ()
        self._time_zone, self._generation = "UTC", 0
        self._central: set[str] = set()
        """Holds that were taken at the authority."""

    @classmethod
    def in_postgres(
        cls,
        authority: Path,
        region: Path,
        budget: str,
        name: str,
        lease_seconds: float = LEASE_SECONDS,
        region_seconds: float = REGION_SECONDS,
    ) -> Self:
        """Make one for two databases: `authority` and `region` are files with their URIs."""
        asked = AuthorityLedger(
            authority, budget, lease_seconds=lease_seconds, region_seconds=region_seconds
        )
        open_region = partial(
            RegionLedger, region, f"{budget}{IN_REGION}{name}", lease_seconds=lease_seconds
        )
        return cls(asked, open_region, name, Lease(region_seconds))

    @property
    def problem(self) -> str | None:
        """See `Ledger.problem`."""
        if self._region.problem is not None:
            return self._region.problem
        if self._shipping is None and self._follower is None:
            return self._authority.problem
        return None if self._asking and self._lease.valid else self._out_of_lease()

    def _out_of_lease(self) -> str:
        if self._lease.why is not None:
            return f"region {self.name} spends nothing: {self._lease.why}"
        why = (self._shipping.problem if self._shipping else None) or self._authority.problem
        age = self._lease.age
        since = "never" if age is None else f"not for {age:.0f} s"
        return (
            f"region {self.name} could {since} tell the budget's database that it lives, and spends"
            f" nothing until it can: {why or 'not tried yet'}"
        )

    # Configuration

    async def configure(
        self, accounts: Sequence[AccountConfig], *, time_zone: str, generation: int
    ) -> None:
        """See `Ledger.configure`."""
        await self._authority.configure(accounts, time_zone=time_zone, generation=generation)
        self._accounts, self._time_zone, self._generation = accounts, time_zone, generation
        paths: dict[str, tuple[str, ...]] = {}
        for each in accounts:
            paths[each.name] = (each.name, *(paths[each.parent] if each.parent else ()))
        self._paths = paths
        if self._follower is None:
            self._region.holder = None
            await self._begin(await self._follow())
            self._follower = asyncio.create_task(self._ship())
        else:
            await self._follow()

    async def _follow(self) -> str:
        """Bring the configuration to the region's tables; tell their id."""
        period = max(balance.period.name for balance in self._authority.balances().values())
        return await self._region.follow(
            self._accounts, time_zone=self._time_zone, generation=self._generation, period=period
        )

    async def _begin(self, tables: str) -> None:
        holder = self._region.holder = Holder(tables, self.name)
        shipping = Shipping(self._authority, self._region, holder, self._lease, self._left)
        await shipping.tell(False)
        self._asking = Asking(self._authority, self._region, holder, self._lease)
        self._shipping = shipping

    async def _ship(self) -> None:
        """Ship until cancelled; begin anew where the region's tables were made anew."""
        while True:
            try:
                if self._asking is None:
                    await self._begin(await self._follow())
                if self._shipping is not None:
                    await self._shipping.follow()
            except TablesReplaced as error:
                log.warning("region", extra={"fields": {"why": str(error)}})
                self._asking = self._shipping = self._region.holder = None
                self._lease.void(str(error))
            except Exception as error:
                # The edge of the task, as in `Shipping.follow`.
                if not isinstance(error, LedgerError):
                    log.exception("region")
                await asyncio.sleep(PAUSE_SECONDS)

    # Calls

    async def hold(self, request: HoldRequest) -> Hold:
        """See `Ledger.hold`.

        Raises:
            ValueError: the amount is negative or beyond what the ledger counts.
        """
        if request.envelope is not None:
            # Its money is set aside at the authority already.
            self._central.add(request.id)
            try:
                return await self._authority.hold(request)
            except BaseException:
                self._central.discard(request.id)
                raise
        for _ in range(_TRIES):
            asking = self._leave(request.account)
            try:
                hold = await self._region.hold(request)
            except BudgetExceeded as full:
                last = full
            else:
                asking.renew(request.account, hold.remaining or 0, request.amount)
                return self._told(hold)
            try:
                await asking.more(request.account, request.amount - last.left)
            except BudgetExceeded as refused:
                raise self._refused(request, refused) from refused
        raise self._refused(request, last) from last

    def _leave(self, account: str) -> Asking:
        """Find whom to ask, where anything may be spent at all."""
        if self._asking is None or not self._lease.valid:
            raise LedgerUnavailable(self._out_of_lease())
        for name in self._paths.get(account, ()):
            balance = self._authority.balance(name)
            if balance.awaiting_approval:
                raise AwaitingApproval(name, balance.period)
        return self._asking

    def _told(self, hold: Hold) -> Hold:
        """Say what is left beside the region's slices, too, as far as is known."""
        left = self._left(hold.account)
        here = hold.remaining or 0
        remaining = None if left is None else Nano(left + here)
        return Hold(hold.id, hold.account, hold.amount, hold.period, remaining)

    def _refused(self, request: HoldRequest, refused: BudgetExceeded) -> BudgetExceeded:
        """Say of a call what the authority said of what it lacked."""
        lefts = [balance.beside_holds for balance in self._on_path(request.account)]
        known = [left for left in lefts if left is not None]
        beside = min(known) if known else None
        return BudgetExceeded(
            refused.account,
            asked=request.amount,
            left=refused.left,
            cap=refused.cap,
            period=refused.period,
            only_held=beside is None or (request.amount <= beside and beside > 0),
        )

    def _left(self, account: str) -> int | None:
        lefts = [balance.remaining for balance in self._on_path(account)]
        known = [left for left in lefts if left is not None]
        return min(known) if known else None

    def _on_path(self, account: str) -> list[Balance]:
        """List where the accounts of a path stand: those that are still configured."""
        balances = self._authority.balances()
        return [balances[name] for name in self._paths.get(account, ()) if name in balances]

    async def settle(self, hold_id: str, settlement: Settlement) -> Entry:
        """See `Ledger.settle`."""
        entry = await self._ledger_of(hold_id).settle(hold_id, settlement)
        self._central.discard(hold_id)
        return entry

    async def release(self, hold_id: str, status: Status = Status.ERROR) -> Entry:
        """See `Ledger.release`."""
        entry = await self._ledger_of(hold_id).release(hold_id, status)
        self._central.discard(hold_id)
        return entry

    def _ledger_of(self, hold_id: str) -> AuthorityLedger | RegionLedger:
        return self._authority if hold_id in self._central else self._region

    async def entry(self, entry_id: str) -> Entry | None:
        """See `Ledger.entry`."""
        return await self._region.entry(entry_id) or await self._authority.entry(entry_id)

    # The authority's

    async def open_envelope(self, request: EnvelopeRequest) -> Envelope:
        """See `Ledger.open_envelope`."""
        return await self._authority.open_envelope(request)

    async def close_envelope(self, envelope_id: str, consumer: str) -> Envelope:
        """See `Ledger.close_envelope`."""
        return await self._authority.close_envelope(envelope_id, consumer)

    async def envelope(self, envelope_id: str) -> Envelope | None:
        """See `Ledger.envelope`."""
        return await self._authority.envelope(envelope_id)

    def open_envelopes(self) -> int:
        """See `Ledger.open_envelopes`."""
        return self._authority.open_envelopes()

    async def entries(self, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """See `Ledger.entries`: those of all regions, as far as they are shipped."""
        return await self._authority.entries(after, limit)

    async def leads(self) -> bool:
        """See `Ledger.leads`: among the gateways of all regions."""
        return await self._authority.leads()

    async def cursor(self, name: str) -> int:
        """See `Ledger.cursor`."""
        return await self._authority.cursor(name)

    async def advance(self, name: str, seq: int) -> None:
        """See `Ledger.advance`."""
        await self._authority.advance(name, seq)

    async def forget(self, before: str, limit: int) -> int:
        """See `Ledger.forget`."""
        return await self._authority.forget(before, limit)

    async def tick(self) -> None:
        """See `Ledger.tick`: here and at the authority."""
        await self._region.tick()
        await self._authority.tick()

    def balance(self, account: str) -> Balance:
        """See `Ledger.balance`: what regions have is held."""
        return self._authority.balance(account)

    def balances(self) -> Mapping[str, Balance]:
        """See `Ledger.balances`."""
        return self._authority.balances()

    def subscribe(self) -> AsyncIterator[LedgerEvent]:
        """See `Ledger.subscribe`."""
        return self._authority.subscribe()

    async def acknowledge(self, action_id: str) -> None:
        """See `Ledger.acknowledge`."""
        await self._authority.acknowledge(action_id)

    async def close(self) -> None:
        """See `Ledger.close`. What the region does not need is given back: all of it by the last
        of its gateways, which only knows that it is when it is none any more."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower
        shipping = self._shipping
        told = shipping is not None and await shipping.finish()
        await self._region.close()
        if shipping is not None and told and self._region.was_last:
            region = self._open()
            region.holder = self._region.holder
            await shipping.give_all_back(region)
            await region.close()
        await self._authority.close()
