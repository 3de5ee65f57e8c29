"""Money for calls: holds that wait their turn, and resolutions that are never forgotten.

Where only other calls' holds are in the way, a call waits in the line of the account that has no
room: the oldest of each line tries again when a hold is resolved, here or by another gateway. Where
what is spent leaves no room, nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import AbstractAsyncContextManager
from typing import Final

from llmbudget.api.money import Nano
from llmbudget.ledger.interface import (
    BudgetExceeded,
    Hold,
    HoldRequest,
    Ledger,
    LedgerError,
    LedgerUnavailable,
    Settlement,
    Status,
)

WAIT_SECONDS: Final = 5.0
"""How long a call waits for others' holds."""
_LOOK_SECONDS: Final = 0.5
"""How often the first in a line tries again though nothing was resolved here."""
_RETRY_SECONDS: Final = (0.1, 5.0)

log = logging.getLogger(__name__)


class HeldCall:
    """One hold, resolved once: settled, released, or, at the end of the block, charged in full."""

    __slots__ = ("_admission", "hold", "resolved")

    def __init__(self, admission: Admission, hold: Hold) -> None:
        self._admission = admission
        self.hold = hold
        self.resolved = False

    async def settle(self, settlement: Settlement) -> None:
        """Charge it."""
        self.resolved = True
        await self._admission.resolve(self.hold, settlement)

    async def release(self) -> None:
        """Give it back: the provider certainly charged nothing."""
        self.resolved = True
        await self._admission.resolve(self.hold, None)


class _Held:
    """The block of one hold. A class, since a generator would cost several times as much."""

    __slots__ = ("_admission", "_call", "_request")

    def __init__(self, admission: Admission, request: HoldRequest) -> None:
        self._admission = admission
        self._request = request

    async def __aenter__(self) -> HeldCall:
        self._call = HeldCall(self._admission, await self._admission.hold(self._request))
        return self._call

    async def __aexit__(self, *_: object) -> None:
        if not self._call.resolved:
            # A task of its own: the block may be ending because it was cancelled.
            unknown = Settlement(cost=None, status=Status.ERROR)
            await asyncio.shield(asyncio.create_task(self._call.settle(unknown)))


class Admission:
    """Takes and resolves holds on one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        """Calls that wait, by the account that has no room for them."""
        self._resolutions = 0
        """Holds resolved so far."""
        self._unresolved: set[asyncio.Task[None]] = set()

    def held(self, request: HoldRequest) -> AbstractAsyncContextManager[HeldCall]:
        """Hold money for the block. A block that does not resolve it leaves it charged. It raises
        what `Ledger.hold` raises; BudgetExceeded.only_held after waiting in vain."""
        return _Held(self, request)

    async def hold(self, request: HoldRequest) -> Hold:
        """Hold money, after a wait where only others' holds are in the way.

        Raises:
            LedgerError: as `Ledger.hold`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_SECONDS
        first_of: str | None = None
        try:
            while True:
                before = self._resolutions
                try:
                    return await self._ledger.hold(request)
                except BudgetExceeded as error:
                    if not error.only_held or loop.time() >= deadline:
                        raise
                    if self._resolutions != before:
                        continue  # what was in the way may have gone while we were told
                    left, first_of = first_of, None
                    if left not in (None, error.account):
                        self._wake_first(left)
                    if not await self._turn(error.account, deadline, left == error.account):
                        raise
                    first_of = error.account
        finally:
            # Whatever became of this turn: there may be room for one more, or an answer.
            self._wake_first(first_of)

    async def _turn(self, account: str, deadline: float, was_first: bool) -> bool:
        """Wait in an account's line until a hold is resolved; its head only for a moment, since
        other gateways resolve holds too. False: the time is up."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        line = self._lines.setdefault(account, deque())
        if was_first:
            line.appendleft(turn)
        else:
            line.append(turn)
        try:
            while (left := deadline - loop.time()) > 0:
                await asyncio.wait([turn], timeout=min(left, _LOOK_SECONDS))
                if turn.done() or line[0] is turn:
                    return True
            return False
        finally:
            if not turn.done():
                line.remove(turn)
            if not line and self._lines.get(account) is line:
                del self._lines[account]

    def _wake_first(self, account: str | None) -> None:
        line = self._lines.get(account, deque()) if account is not None else deque()
        while line:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _wake_all_lines(self) -> None:
        for account in list(self._lines):
            self._wake_first(account)

    async def resolve(self, hold: Hold, settlement: Settlement | None) -> None:
        """Settle, or release where there is no settlement. What the ledger can't take now is
        brought to it again until it can."""
        try:
            await self._resolve(hold.id, settlement)
        except LedgerUnavailable as error:
            log.warning("settle delayed", extra={"fields": {"entry": hold.id, "why": str(error)}})
            task = asyncio.create_task(self._insist(hold.id, settlement))
            self._unresolved.add(task)
            task.add_done_callback(self._unresolved.discard)

    async def _resolve(self, hold_id: str, settlement: Settlement | None) -> None:
        if settlement is None:
            await self._ledger.release(hold_id)
        else:
            await self._ledger.settle(hold_id, settlement)
        self._resolutions += 1
        self._wake_all_lines()

    async def _insist(self, hold_id: str, settlement: Settlement | None) -> None:
        pause, longest = _RETRY_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self._resolve(hold_id, settlement)
            except LedgerUnavailable:
                pause = min(pause * 2, longest)
            except LedgerError as error:
                # It is there and knows nothing of the hold: trying again mends nothing.
                log.error("not settled", extra={"fields": {"entry": hold_id, "why": str(error)}})
                return
            else:
                return

    def left_beside_spent(self, accounts: tuple[str, ...]) -> Nano | None:
        """Tell what is left on the tightest account of a path when all holds are let go."""
        balances = [self._ledger.balance(account) for account in accounts]
        lefts = [b.beside_holds for b in balances if b.beside_holds is not None]
        return min(lefts) if lefts else None
