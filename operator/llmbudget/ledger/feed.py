"""Following the accounts: a snapshot first, then changes, coalesced for slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmbudget.contract.events import ActionEvent, BalanceEvent, LedgerEvent, SnapshotEvent
from llmbudget.ledger.book import Book
from llmbudget.ledger.interface import ActionRow, Balance


@dataclass(frozen=True, slots=True)
class Committed:
    """What a transaction changed, for those who follow."""

    balances: Mapping[str, Balance]
    actions: Sequence[ActionRow]
    epoch: int
    generation: int
    reconfigured: bool
    """All accounts are among the balances: those that are not are gone."""
    envelopes: int
    """How many are open."""

    @classmethod
    def by(cls, book: Book, fresh: Sequence[ActionRow] | None = None) -> Committed | None:
        """Say what the running transaction changes; None: nothing. Where the book was read anew,
        that is everything, with the actions that are `fresh`."""
        if book.header.period is None:
            return None
        changes = book.changes
        everything = changes.header or fresh is not None
        names = book.active_accounts() if everything else book.changed_accounts()
        if not (names or changes.actions or everything):
            return None
        return cls(
            balances=book.balances(names),
            actions=[*(fresh or ()), *changes.actions.values()],
            epoch=book.header.epoch,
            generation=book.header.generation,
            reconfigured=everything,
            envelopes=len(book.envelopes),
        )


class Feed:
    """What is known of the accounts, and who follows it. Belongs to one event loop.

    `seq` grows with every event. It starts at the owner's epoch times 2**32, so that it grows
    across restarts too.
    """

    def __init__(self, epoch: int = 0) -> None:
        self._seq = epoch << 32
        self._generation = 0
        self.envelopes = 0
        """How many are open."""
        self._balances: dict[str, Balance] = {}
        self._actions: dict[str, ActionRow] = {}
        self._readers: set[_Reader] = set()

    @property
    def balances(self) -> Mapping[str, Balance]:
        """Where all accounts stand."""
        return self._balances

    def take(self, committed: Committed) -> None:
        """Take over what a transaction changed."""
        self._seq = max(self._seq, committed.epoch << 32)
        self.envelopes = committed.envelopes
        if committed.reconfigured:
            self.replace(committed.balances, generation=committed.generation)
        else:
            self.update(committed.balances)
        if committed.actions:
            self.act(committed.actions)

    def replace(self, balances: Mapping[str, Balance], *, generation: int) -> None:
        """Take over all balances: those of accounts that are gone are dropped."""
        self._generation = generation
        for gone in self._balances.keys() - balances.keys():
            del self._balances[gone]
        self.update(balances)

    def update(self, balances: Mapping[str, Balance]) -> None:
        """Take over changed balances."""
        self._balances.update(balances)
        for reader in self._readers:
            reader.accounts.update(dict.fromkeys(balances))
            reader.wake.set()

    def act(self, actions: Iterable[ActionRow]) -> None:
        """Take over new or acknowledged actions."""
        for action in actions:
            self._actions[action.id] = action
            for reader in self._readers:
                reader.actions[action.id] = action
                reader.wake.set()
        periods = {balance.period.name for balance in self._balances.values()}
        for done in [row for row in self._actions.values() if row.acknowledged]:
            if done.period not in periods:
                del self._actions[done.id]

    async def follow(self) -> AsyncIterator[LedgerEvent]:
        """See `Ledger.subscribe`."""
        reader = _Reader(self._balances, self._actions)
        self._readers.add(reader)
        told = False
        try:
            while True:
                await reader.wake.wait()
                reader.wake.clear()
                # What changes meanwhile waits for the next round, so that actions get their turn.
                names, reader.accounts = reader.accounts, {}
                for name in names:
                    if name in self._balances:
                        yield self._balance_event(self._balances[name])
                actions, reader.actions = reader.actions, {}
                for action in actions.values():
                    yield self._action_event(action)
                if not told:
                    told = True
                    yield SnapshotEvent(seq=self._seq)
        finally:
            self._readers.discard(reader)

    def _balance_event(self, balance: Balance) -> BalanceEvent:
        self._seq += 1
        return BalanceEvent(
            account=balance.account,
            period=balance.period.name,
            period_start=balance.period.start.isoformat(),
            period_end=balance.period.end.isoformat(),
            cap_nano=balance.cap,
            spent_nano=balance.spent,
            held_nano=balance.held,
            lent_nano=balance.lent,
            borrowed_nano=balance.borrowed,
            topped_up_nano=balance.topped_up,
            rolled_over_nano=balance.rolled_over,
            remaining_nano=balance.remaining,
            level=balance.level,
            awaiting_approval=balance.awaiting_approval,
            config_generation=self._generation,
            seq=self._seq,
        )

    def _action_event(self, row: ActionRow) -> ActionEvent:
        self._seq += 1
        return ActionEvent(
            id=row.id,
            account=row.account,
            period=row.period,
            percentage=row.percentage,
            action=row.action,
            spent_nano=row.spent,
            cap_nano=row.cap,
            fired_at=row.fired_at.isoformat(),
            acknowledged=row.acknowledged,
            seq=self._seq,
        )


class _Reader:
    """What one follower has not seen yet."""

    def __init__(self, balances: Iterable[str], actions: Mapping[str, ActionRow]) -> None:
        self.accounts: dict[str, None] = dict.fromkeys(balances)
        self.actions = dict(actions)
        self.wake = asyncio.Event()
        self.wake.set()
