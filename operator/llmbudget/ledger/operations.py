"""The interface on top of a book: each operation of a ledger is queued, run and committed.

An engine says how operations are committed and how rows are read beside them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from llmbudget.contract.config import AccountConfig
from llmbudget.contract.events import LedgerEvent
from llmbudget.ledger.book import Book
from llmbudget.ledger.envelopes import envelope_key
from llmbudget.ledger.feed import Feed
from llmbudget.ledger.interface import (
    Balance,
    Entry,
    Envelope,
    EnvelopeRequest,
    Hold,
    HoldRequest,
    LedgerUnavailable,
    Settlement,
    Status,
    UnknownAccount,
)
from llmbudget.ledger.records import EntryRow

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Subject:
    """What an operation is about, so that an engine may fetch it beforehand."""

    id: str | None = None
    """Of a hold and its entry."""
    key: tuple[str, str] | None = None
    """Consumer and idempotency key."""
    new: bool = False
    """Whether the id should be in use by nobody."""
    holder: str | None = None
    """Of slices."""


NOTHING: Final = Subject()
_AGAIN_SECONDS: Final = 1.0
"""Between two tries to give back what nobody waits for."""


class Reading(Protocol):
    """Rows as committed, beside what runs."""

    def entry(self, entry_id: str) -> EntryRow | None:
        """Find an entry by its id."""

    def entries(self, after: int, limit: int) -> list[Entry]:
        """Read entries in the order of their `seq`."""

    def envelope(self, envelope_id: str) -> Envelope | None:
        """Find an envelope, open or closed."""

    def cursor(self, name: str) -> int:
        """Read a cursor; 0 where it was never stored."""


class Operations(ABC):
    """What every engine of a `Ledger` does alike."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._closed = False

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """See `Ledger.problem`."""

    @abstractmethod
    def _submit(
        self, run: Callable[[Book], Result], *, durable: bool = True, about: Subject = NOTHING
    ) -> asyncio.Future[Result]:
        """Queue an operation; the future is resolved when it is committed."""

    @abstractmethod
    async def _read(self, read: Callable[[Reading], Result]) -> Result:
        """Read rows beside what runs."""

    @abstractmethod
    async def leads(self) -> bool:
        """See `Ledger.leads`."""

    @abstractmethod
    async def close(self) -> None:
        """See `Ledger.close`."""

    async def configure(
        self, accounts: Sequence[AccountConfig], *, time_zone: str, generation: int
    ) -> None:
        """See `Ledger.configure`.

        Raises:
            ValueError: the time zone is unknown, a cap is out of range or the tree is none.
        """
        await self._submit(
            lambda book: book.configure(accounts, time_zone=time_zone, generation=generation)
        )

    async def hold(self, request: HoldRequest) -> Hold:
        """See `Ledger.hold`. When the caller is cancelled meanwhile, the hold is given back.

        Raises:
            ValueError: the amount is negative or beyond what the ledger counts.
        """
        key = request.idempotency_key
        about = Subject(
            request.id, None if key is None else (request.consumer or "", key), new=True
        )
        asked = self._submit(lambda book: book.hold(request), about=about)
        try:
            return await asked
        except asyncio.CancelledError:
            self._give_back(request.id)
            raise

    def _give_back(self, hold_id: str) -> None:
        """Release a hold that nobody waits for, if it was granted: it runs after what asked for it.
        Where that can't be done now, it is tried again until the ledger is closed; whatever is held
        then is charged by the next owner."""
        if self._closed:
            return

        def done(given: asyncio.Future[Entry]) -> None:
            # UnknownHold: it was refused.
            if not given.cancelled() and isinstance(given.exception(), LedgerUnavailable):
                given.get_loop().call_later(_AGAIN_SECONDS, self._give_back, hold_id)

        given = self._submit(lambda book: book.release(hold_id), about=Subject(hold_id))
        given.add_done_callback(done)

    async def settle(self, hold_id: str, settlement: Settlement) -> Entry:
        """See `Ledger.settle`.

        Raises:
            ValueError: a figure is negative or beyond what the ledger counts.
        """
        return await self._submit(
            lambda book: book.settle(hold_id, settlement), durable=False, about=Subject(hold_id)
        )

    async def release(self, hold_id: str, status: Status = Status.ERROR) -> Entry:
        """See `Ledger.release`."""
        return await self._submit(
            lambda book: book.release(hold_id, status), durable=False, about=Subject(hold_id)
        )

    async def open_envelope(self, request: EnvelopeRequest) -> Envelope:
        """See `Ledger.open_envelope`.

        Raises:
            ValueError: the amount is not above 0 or beyond what the ledger counts.
        """
        return await self._submit(
            lambda book: book.open_envelope(request), about=Subject(key=envelope_key(request))
        )

    async def close_envelope(self, envelope_id: str, consumer: str) -> Envelope:
        """See `Ledger.close_envelope`."""
        return await self._submit(lambda book: book.close_envelope(envelope_id, consumer))

    async def envelope(self, envelope_id: str) -> Envelope | None:
        """See `Ledger.envelope`."""
        return await self._read(lambda rows: rows.envelope(envelope_id))

    def open_envelopes(self) -> int:
        """See `Ledger.open_envelopes`."""
        return self._feed.envelopes

    async def take_over(self, source: str, account: str, drafts: Sequence[Entry]) -> bool:
        """Charge the calls that another ledger counted before, all of them, once for each source;
        tell whether it was the first time.

        Raises:
            ValueError: a figure is negative or beyond what the ledger counts.
            LedgerUnavailable: nothing was charged.
        """
        return await self._submit(lambda book: book.take_over(source, account, drafts))

    async def acknowledge(self, action_id: str) -> None:
        """See `Ledger.acknowledge`."""
        await self._submit(lambda book: book.acknowledge(action_id))

    async def advance(self, name: str, seq: int) -> None:
        """See `Ledger.advance`."""
        await self._submit(lambda book: book.advance(name, seq), durable=False)

    async def forget(self, before: str, limit: int) -> int:
        """See `Ledger.forget`."""
        return await self._submit(lambda book: book.forget(before, limit), durable=False)

    async def tick(self) -> None:
        """See `Ledger.tick`. An idle ledger turns the period within a second by itself."""
        await self._submit(lambda book: None, durable=False)

    async def entry(self, entry_id: str) -> Entry | None:
        """See `Ledger.entry`."""

        def find(rows: Reading) -> Entry | None:
            row = rows.entry(entry_id)
            return None if row is None else row.entry

        return await self._read(find)

    async def entries(self, after: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """See `Ledger.entries`."""
        return await self._read(lambda rows: rows.entries(after, limit))

    async def cursor(self, name: str) -> int:
        """See `Ledger.cursor`."""
        return await self._read(lambda rows: rows.cursor(name))

    def balance(self, account: str) -> Balance:
        """See `Ledger.balance`."""
        try:
            return self._feed.balances[account]
        except KeyError:
            raise UnknownAccount(f"{account}: this account is not configured") from None

    def balances(self) -> Mapping[str, Balance]:
        """See `Ledger.balances`."""
        return self._feed.balances

    def subscribe(self) -> AsyncIterator[LedgerEvent]:
        """See `Ledger.subscribe`."""
        return self._feed.follow()
