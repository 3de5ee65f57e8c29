"""A call under way, and its physical attempts at providers, each with the money held for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llmbudget.api.money import Nano
from llmbudget.contract.config import Prices
from llmbudget.decide.catalogue import Catalogue, Offer
from llmbudget.decide.consumers import Consumer
from llmbudget.decide.cost import Usage, cost, told
from llmbudget.decide.vendors import Vendor, vendor_of
from llmbudget.gateway.admission import HeldCall
from llmbudget.gateway.observe import CallRecord, CallStory
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.operation import CallRequest, Operation
from llmbudget.gateway.upstream import Upstream
from llmbudget.gateway.wire import Exchange, Headers
from llmbudget.ledger.interface import Envelope, Settlement, Status

_TELLING: Final = (Vendor.OPENROUTER, Vendor.XAI)
"""Who tells in each answer what it costs, as their pages "Usage accounting" and "Cost tracking"
document."""


@dataclass(slots=True)
class Call:
    """One call under way."""

    consumer: Consumer
    operation: Operation
    asked: CallRequest
    catalogue: Catalogue
    upstreams: Mapping[str, Upstream]
    exchange: Exchange
    count_tokens: Callable[[int], None]
    envelope: Envelope | None
    """What it is paid from; None: the budget itself."""
    task_id: str | None
    idempotency_key: str | None
    fingerprint: str | None
    betas: str
    """The caller's `anthropic-beta`, checked and written anew; empty: none."""
    story: CallStory

    @property
    def upstream_headers(self) -> Headers:
        """Headers for the provider beside the key."""
        betas = [("anthropic-beta", self.betas)] if self.betas else []
        return [*self.operation.headers, *betas]

    @property
    def path(self) -> tuple[str, ...]:
        """Accounts that are charged, root first."""
        return self.catalogue.names


@dataclass(slots=True)
class Attempt:
    """One attempt under way."""

    held: HeldCall
    offer: Offer
    prices: Prices
    record: CallRecord
    plausible: int
    """Highest token count of the provider's answer that is believed."""
    status: Status
    key: str
    """The provider's key, to be masked in what goes back."""
    headers: Headers
    """Headers of the answer so far."""
    kinds: frozenset[str] = frozenset()
    """Rates that may apply beside those of text."""

    def believed(self, usage: Usage | None) -> Usage | None:
        """Take a usage that says all that is charged; any other is none."""
        if usage is None or not told(usage, self.prices):
            return None
        return None if usage.reported is None and self._is_told_costs else usage

    def costs(self, usage: Usage | None) -> Nano:
        """Tell what is charged: what was used, or all that is held where nobody knows."""
        if usage is None:
            return self.held.hold.amount
        known = cost(usage, self.prices, self.kinds)
        return max(known, usage.reported) if usage.reported and self._is_told_costs else known

    @property
    def _is_told_costs(self) -> bool:
        """Whether the provider documents that its answers tell what they cost."""
        provider = self.offer.provider
        return vendor_of(provider.endpoint, provider.api_version) in _TELLING

    async def charge(self, usage: Usage | None, charged: Nano) -> None:
        """Settle by what `costs` told."""
        if usage is None:
            known = None if charged == self.held.hold.amount else charged
            await self.held.settle(Settlement(known, status=self.status))
        else:
            settlement = Settlement(charged, usage.tokens_in, usage.tokens_out, self.status)
            await self.held.settle(settlement)


@dataclass(slots=True)
class Failed:
    """An attempt that the next provider may make good."""

    refusal: Refusal
    charged: bool = False
    """The provider may have done the work, so its hold was charged in full."""
    key_refused: bool = False
    """The provider does not accept the key, which may have been rotated."""
