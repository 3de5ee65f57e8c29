"""A ledger that is not there: everything is refused, so that nothing is granted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NoReturn

from llmbudget.contract.config import AccountConfig
from llmbudget.contract.events import LedgerEvent
from llmbudget.ledger.interface import (
    Balance,
    Entry,
    Hold,
    HoldRequest,
    LedgerUnavailable,
    Settlement,
    Status,
)


class UnavailableLedger:
    """A `Ledger` that says why it is none."""

    def __init__(self, why: str) -> None:
        self._why = why

    def _refuse(self) -> NoReturn:
        raise LedgerUnavailable(self._why)

    async def configure(
        self, accounts: Sequence[AccountConfig], *, time_zone: str, generation: int
    ) -> None:
        """There is nothing to configure."""

    async def hold(self, request: HoldRequest) -> Hold:
        """Refuse."""
        self._refuse()

    async def settle(self, hold_id: str, settlement: Settlement) -> Entry:
        """Refuse."""
        self._refuse()

    async def release(self, hold_id: str, status: Status = Status.ERROR) -> Entry:
        """Refuse."""
        self._refuse()

    async def entry(self, entry_id: str) -> Entry | None:
        """Refuse."""
        self._refuse()

    async def entries(self, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """There are none."""
        return ()

    async def cursor(self, name: str) -> int:
        """Nobody has read anything."""
        return 0

    async def advance(self, name: str, seq: int) -> None:
        """Refuse."""
        self._refuse()

    async def forget(self, before: str, limit: int) -> int:
        """There is nothing to forget."""
        return 0

    def balance(self, account: str) -> Balance:
        """Refuse."""
        self._refuse()

    def balances(self) -> Mapping[str, Balance]:
        """There are none."""
        return {}

    async def subscribe(self) -> AsyncIterator[LedgerEvent]:
        """Refuse."""
        self._refuse()
        yield  # An iterator, as the interface asks.

    async def acknowledge(self, action_id: str) -> None:
        """Refuse."""
        self._refuse()

    async def close(self) -> None:
        """There is nothing to close."""
