"""Bringing a region's rows to the authority, and giving back what it does not need.

Any gateway of the region may do it at any time, two at once among them: rows are booked by their
numbers, and rests are told as totals. So that they don't all do it, the longest-living one does,
and the others only where rows wait for too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from llmbudget.decide.periods import months_before
from llmbudget.decide.slices import to_give_back
from llmbudget.ledger.interface import Entry, LedgerError
from llmbudget.ledger.postgres.engine import PostgresLedger
from llmbudget.ledger.records import Holder, Slice
from llmbudget.ledger.regions.evidence import (
    SlicesDisagree,
    Stand,
    refuse_excess,
    refuse_gone_back,
)
from llmbudget.ledger.regions.lease import Lease
from llmbudget.ledger.regions.ledgers import AuthorityLedger, Key, RegionLedger
from llmbudget.ledger.regions.local import Position
from llmbudget.ledger.regions.messages import Answer, LedgerWentBack, TablesReplaced, Told

BATCH: Final = 500
"""Rows in one transaction of the authority."""
PAUSE_SECONDS: Final = 0.5
"""Between two looks: so late are status, thresholds and export for a region's calls."""
WINDOW_SECONDS: Final = 10.0
"""The recent past, of which a region keeps as much again."""
_FINISH_SECONDS: Final = 3.0
_LATE_SECONDS: Final = 5.0
"""A row that is not booked by then is shipped by any gateway: who should may be cut off."""

log = logging.getLogger(__name__)


class Recent:
    """How much was spent in the recent past."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[Key, deque[tuple[float, int]]] = {}

    def spent(self, position: Position) -> int:
        """Take down where an account stands; tell what it spent since the window began."""
        now = self._clock()
        seen = self._seen.setdefault((position.account, position.period), deque())
        seen.append((now, position.spent))
        while len(seen) > 1 and seen[1][0] <= now - WINDOW_SECONDS:
            seen.popleft()
        return position.spent - seen[0][1]


class Shipping:
    """Speaks to the authority for one region."""

    def __init__(
        self,
        authority: AuthorityLedger,
        region: RegionLedger,
        holder: Holder,
        lease: Lease,
        left: Callable[[str], int | None],
    ) -> None:
        self._authority = authority
        self._region = region
        self._holder = holder
        self._lease = lease
        self._left = left
        """Tells what is left at the authority on an account's path."""
        self._recent = Recent(lease.now)
        self._shipped: int | None = None
        """The last row that is booked; None: not known yet."""
        self._answer: Answer | None = None
        """The last one."""
        self._known: dict[Key, Slice] = {}
        """As the authority said last."""
        self._regions = 1
        self._newest = 0
        """The region's last row."""
        self._waits = 0, lease.now()
        """A row that another gateway should ship, and since when."""
        self._largest = 0
        """Bound of the largest call among the rows that were shipped last."""
        self._forgotten = ""
        """Rows of months before this one were dropped."""
        self.problem: str | None = None
        """Why the authority could not be told last time."""

    async def follow(self) -> None:
        """Go on until cancelled.

        Raises:
            TablesReplaced: there is another holder now.
        """
        while True:
            try:
                again = await self.tell(await self._region.leads() or await self._late())
            except TablesReplaced:
                raise
            except Exception as error:
                # The edge of the task: without it nothing would be shipped any more.
                known = isinstance(error, LedgerError)
                if self.problem is None:
                    fields = {"why": str(error) or repr(error)}
                    log.warning("authority", extra={"fields": fields}, exc_info=not known)
                self.problem, again = str(error) or repr(error), False
            else:
                if self.problem is not None:
                    log.info("authority", extra={"fields": {"reached": self._holder.region}})
                self.problem = None
            if not again:
                await asyncio.sleep(PAUSE_SECONDS)

    async def tell(self, ship: bool, *, keep: bool = True) -> bool:
        """Tell the authority what there is to tell; tell whether there is more. Without `ship` only
        that this region lives, and without `keep` nothing is kept back of its slices.

        Raises:
            LedgerWentBack, SlicesDisagree: nothing may be spent until what they say is mended.
            LedgerError.
        """
        try:
            return await self._tell(ship, keep)
        except SlicesDisagree as error:
            self._lease.void(str(error))
            raise
        except LedgerWentBack as error:
            self._lease.void(str(error))
            await self._authority.distrust(self._holder)
            raise

    async def _tell(self, ship: bool, keep: bool) -> bool:
        if ship:
            await self._turn()
        rows, positions = await self._news(ship)
        self._largest = max((row.held for row in rows), default=self._largest)
        given = ship and await self._give_back(positions, keep)
        if given:
            positions = await self._region.positions(self._since())
        returned = {
            (each.account, each.period): each.returned
            for each in positions
            if ship and each.returned > self._returned_of(each)
        }
        if not (rows or returned or self._lease.due or self._shipped is None):
            if ship:
                await self._forget()
            return False
        sent = self._lease.now()
        first, after = self._shipped is None, self._shipped or 0
        answer = await self._authority.hear(self._holder, Told(after, rows, returned))
        self._answer, self._known = answer, dict(answer.slices)
        self._shipped, self._regions = answer.shipped_seq, answer.regions
        await self._stand()
        refuse_excess(self._holder.region, answer, positions)
        self._lease.renewed(sent)
        granted = {key: each.granted for key, each in answer.slices.items()}
        known = {(each.account, each.period): each.granted for each in positions}
        if any(total > known.get(key, 0) for key, total in granted.items()):
            await self._region.fund(self._holder, granted, answer.period)
        return first or len(rows) == BATCH

    async def _late(self) -> bool:
        """Tell whether rows wait for so long that whoever should ship them can't."""
        row, since = self._waits
        if self._lease.now() - since < _LATE_SECONDS:
            return False
        with contextlib.suppress(LedgerError):
            if await self._authority.booked(self._holder) < row:
                return True
        self._waits = self._newest, self._lease.now()
        return False

    async def finish(self) -> bool:
        """Tell what is left to tell before this gateway ends; tell whether it could be told."""
        return await self._finish(keep=True)

    async def give_all_back(self, region: RegionLedger) -> None:
        """Let go of all that is unused, where the region's last gateway has ended; `region` was
        opened anew for it."""
        self._region = region
        await self._finish(keep=False)

    async def _finish(self, *, keep: bool) -> bool:
        try:
            async with asyncio.timeout(_FINISH_SECONDS):
                await self._region.tick()
                while await self.tell(True, keep=keep):
                    pass
        except (LedgerError, TimeoutError) as error:
            log.warning("slices stay out", extra={"fields": {"why": str(error)}})
            return False
        return True

    async def _turn(self) -> None:
        """Go on to the month that the authority has reached."""
        reached = _month(self._authority)
        if reached > _month(self._region):
            await self._region.fund(self._holder, {}, reached)

    async def _news(self, ship: bool) -> tuple[list[Entry], list[Position]]:
        rows: list[Entry] = []
        stand = await self._stand()
        self._newest = stand.last_seq
        if ship and self._shipped is not None and self._shipped < self._newest:
            rows = list(await self._region.entries(self._shipped, BATCH))
        return rows, list(stand.positions)

    async def _stand(self) -> Stand:
        """Read where the region's database stands; see that it knows what was answered last."""
        stand = await self._region.stand(self._shipped or 0, self._since())
        if self._answer is not None:
            refuse_gone_back(self._holder.region, self._answer, stand)
        return stand

    def _since(self) -> str:
        """Find the first period that the authority may not know all of."""
        return min([period for _, period in self._known] + [_month(self._region)])

    async def _forget(self) -> None:
        """Drop what the authority has and no call asks for any more: ids and keys are looked for in
        this month and the last."""
        month = _month(self._region)
        before = months_before(month, 1) if month else ""
        if before <= self._forgotten or self._shipped != self._newest:
            return
        if not await self._region.forget(before, BATCH):
            self._forgotten = before

    async def _give_back(self, positions: list[Position], keep: bool) -> bool:
        month, accounts = _month(self._region), self._authority.balances()

        def amount(position: Position) -> int:
            # An account that was deleted is granted nothing, and needs nothing.
            if position.period < month or position.account not in accounts or not keep:
                return position.unused
            left = self._left(position.account)
            recent = self._recent.spent(position)
            return to_give_back(position.unused, left, recent, self._regions, self._largest)

        amounts = {(each.account, each.period): amount(each) for each in positions}
        wanted = {key: found for key, found in amounts.items() if found > 0}
        if wanted:
            await self._region.give_back(wanted, lambda p: wanted[p.account, p.period])
        return bool(wanted)

    def _returned_of(self, position: Position) -> int:
        known = self._known.get((position.account, position.period))
        return 0 if known is None else known.returned


def _month(ledger: PostgresLedger) -> str:
    """Tell a ledger's month; empty: it is not configured yet."""
    return max((balance.period.name for balance in ledger.balances().values()), default="")
