"""The official clients of a gateway, holding a ServiceAccount token and no key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import anthropic
import openai
from tests.support.gateway_process import KEY, GatewayProcess, Simulator, rows

from llmbudget.ledger.interface import Entry


@dataclass
class OfficialClients:
    """Clients of both protocols, and whom their calls go to."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic
    gateway: GatewayProcess
    simulator: Simulator

    @classmethod
    @asynccontextmanager
    async def of(cls, gateway: GatewayProcess, simulator: Simulator) -> AsyncIterator[Self]:
        """Open them, once the gateway offers models in both protocols; `claude` is the provider
        that speaks Anthropic's."""
        (gateway.folder / "keys" / "claude").write_text(KEY)
        token = await gateway.token()
        async with (
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=token, max_retries=0) as first,
            anthropic.AsyncAnthropic(base_url=gateway.url, api_key=token, max_retries=0) as second,
        ):
            for _ in range(50):
                # The configuration takes a moment to come.
                if [m async for m in second.models.list()]:
                    break
            yield cls(first, second, gateway, simulator)

    async def metered(self) -> Sequence[Entry]:
        """Read the rows: all metered, and together what the provider bills."""
        found = await rows(self.gateway)
        assert [row.outcome for row in found] == ["metered"] * len(found)
        assert sum(row.cost for row in found) == (await self.simulator.bill())["nano"]
        assert all(row.cost <= row.held for row in found)
        return found
