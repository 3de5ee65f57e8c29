"""The load: which calls are made against which cap, and what became of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import httpx

from llmbudget.local.bill import Prices
from llmbudget.local.provider import tokens_in, tokens_out

SEED: Final = 371
TIMEOUT: Final = 300.0
PriceTable = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Scenario:
    """Calls that are worth more than the cap."""

    name: str
    title: str
    prices: PriceTable
    cap: int
    """Nano-USD."""
    calls: tuple[Mapping[str, Any], ...]
    """Bodies of chat completions."""
    concurrency: int
    full: int
    """Percent of the cap that must have been used at the end."""

    @property
    def worth(self) -> int:
        """What all calls would cost together, in nano-USD."""
        return sum(cost(self.prices, call) for call in self.calls)


@dataclass(frozen=True)
class Outcome:
    """What one gateway made of a scenario. Amounts in nano-USD."""

    gateway: str
    answers: Counter[int]
    seconds: float
    billed: int
    """By the provider."""
    recorded: int
    """By the gateway's own books, rounded where those are no integers."""


def cost(prices: PriceTable, body: Mapping[str, Any]) -> int:
    """Price a call as the provider will."""
    prompt = body["messages"]
    tokens = tokens_in(prompt), tokens_out(prompt, int(body["max_tokens"]), 0)
    return Prices(prices).cost(str(body["model"]), *tokens, {})


def _call(model: str, words: int, limit: int, number: int) -> dict[str, Any]:
    prompt = f"Call {number}: tell me about money in {words} words."
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": limit}


def burst() -> Scenario:
    """200 calls of one cent at once, against ten cents."""
    prices = {"cent": {"inputPer1K": "0", "outputPer1K": "0.1"}}
    calls = tuple(_call("cent", 100, 100, number) for number in range(200))
    return Scenario(
        "burst", "200 calls of $0.01 at once, cap $0.10", prices, 10**8, calls, 200, 100
    )


def mixed() -> Scenario:
    """1,000 calls at prices and of lengths drawn at random; the cap is worth some 300 of them."""
    draw = Random(SEED)
    prices = {
        f"model-{number}": {
            "inputPer1K": f"0.00{draw.randrange(1, 10**5):05d}",
            "outputPer1K": f"0.0{draw.randrange(1, 10**6):06d}",
        }
        for number in range(12)
    }
    calls = []
    for number in range(1000):
        words = draw.randrange(10, 200)
        limit = draw.choice([words, words + 50, 256])
        calls.append(_call(draw.choice(list(prices)), words, limit, number))
    cap = sum(cost(prices, call) for call in calls) * 3 // 10
    title = "1,000 calls at random prices, 64 at once, a cap worth 300"
    return Scenario("mixed", title, prices, cap, tuple(calls), 64, 90)


async def fire(scenario: Scenario, base_url: str, token: str) -> Counter[int]:
    """Make all calls, so many at once; count the answers by status."""
    limits = httpx.Limits(max_connections=scenario.concurrency)
    gate = asyncio.Semaphore(scenario.concurrency)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        limits=limits, timeout=TIMEOUT, headers=headers, trust_env=False
    ) as client:

        async def one(body: Mapping[str, Any]) -> int:
            async with gate:
                answer = await client.post(f"{base_url}/chat/completions", json=body)
                return answer.status_code

        return Counter(await asyncio.gather(*(one(body) for body in scenario.calls)))
