"""One physical attempt at a provider, with the money that is held for it."""

from __future__ import annotations

from dataclasses import dataclass

from llmbudget.api.money import Nano
from llmbudget.contract.config import Prices
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.prices import Usage, cost, told
from llmbudget.gateway.admission import HeldCall
from llmbudget.gateway.observe import CallRecord
from llmbudget.gateway.wire import Headers
from llmbudget.ledger.interface import Settlement, Status


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
        return usage if usage is not None and told(usage, self.prices) else None

    def costs(self, usage: Usage | None) -> Nano:
        """Tell what is charged: what was used, or all that is held where nobody knows."""
        return self.held.hold.amount if usage is None else cost(usage, self.prices, self.kinds)

    async def charge(self, usage: Usage | None, charged: Nano) -> None:
        """Settle by what `costs` told."""
        if usage is None:
            await self.held.settle(Settlement(None, status=self.status))
        else:
            settlement = Settlement(charged, usage.tokens_in, usage.tokens_out, self.status)
            await self.held.settle(settlement)
