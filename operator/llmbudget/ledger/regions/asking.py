"""Getting slices: calls that lack money at the same time ask together, one question an account."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from llmbudget.ledger.interface import BudgetExceeded, LedgerError, LedgerUnavailable, OutOfReach
from llmbudget.ledger.records import Holder
from llmbudget.ledger.regions.lease import Lease
from llmbudget.ledger.regions.ledgers import AuthorityLedger, RegionLedger
from llmbudget.ledger.regions.messages import LedgerWentBack

PATIENCE_SECONDS: Final = 5.0
"""How long a call waits for the authority's answer."""
_LOW: Final = 4
"""A slice of which less than one part in so many is left is renewed before it is used up."""


class Asking:
    """Asks the authority on behalf of one gateway's calls."""

    def __init__(
        self, authority: AuthorityLedger, region: RegionLedger, holder: Holder, lease: Lease
    ) -> None:
        self._lease = lease
        self._authority = authority
        self._region = region
        self._holder = holder
        self._short: dict[str, list[int]] = {}
        """What calls lack, by account, that will be asked for at the end of this turn."""
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._sizes: dict[str, int] = {}
        """The last slices, where there is hope of another one before it is needed."""

    async def more(self, account: str, short: int) -> None:
        """Get a slice for a call that lacks some money; it then tries again.

        Raises:
            BudgetExceeded, AwaitingApproval, UnknownAccount: there is none.
            OutOfReach.
        """
        while (task := self._under_way.get(account)) is not None and account not in self._short:
            # Asked already, for others: what is too much for them need not be for this one.
            with contextlib.suppress(BudgetExceeded):
                await asyncio.shield(task)
                return
        if task is None:
            task = self._under_way[account] = asyncio.create_task(self._ask(account))
            self._short[account] = []
            # Whoever waits for it hears; where all have gone, nobody needs to.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._short[account].append(short)
        await asyncio.shield(task)

    def renew(self, account: str, left: int, amount: int) -> None:
        """Get the next slice beside the calls, where the last one is nearly used up."""
        size = self._sizes.get(account)
        if size is None or left * _LOW >= size or account in self._under_way:
            return
        task = asyncio.create_task(self._quietly(account, amount))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _quietly(self, account: str, amount: int) -> None:
        with contextlib.suppress(LedgerError):
            await self.more(account, amount)

    async def _ask(self, account: str) -> None:
        await asyncio.sleep(0)
        short = self._short.pop(account)
        try:
            # What was granted after all is found when the region tells of itself next.
            async with asyncio.timeout(PATIENCE_SECONDS):
                granted = await self._authority.grant(self._holder, account, sum(short), min(short))
            key = (granted.account, granted.period)
            await self._region.fund(self._holder, {key: granted.total}, granted.period)
            if granted.size > sum(short):
                self._sizes[account] = granted.size
            else:
                # The budget is near its end: each call asks for itself.
                self._sizes.pop(account, None)
        except LedgerError as error:
            self._sizes.pop(account, None)
            if isinstance(error, LedgerWentBack):
                self._lease.void(str(error))
            if isinstance(error, LedgerUnavailable):
                raise OutOfReach(self._holder.region, str(error)) from error
            raise
        except TimeoutError as error:
            why = f"the budget's database did not answer within {PATIENCE_SECONDS:g} s"
            raise OutOfReach(self._holder.region, why) from error
        finally:
            del self._under_way[account]
