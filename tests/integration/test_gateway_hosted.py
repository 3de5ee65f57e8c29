"""What a provider does by itself, through the official clients: search, keep, read files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from tests.support.gateway_process import (
    USD,
    GatewayProcess,
    Simulator,
    account,
    config,
    model,
    provider,
    rows,
)
from tests.support.official_clients import OfficialClients

from llmbudget.api.credentials import KeyHeader
from llmbudget.api.provider import Protocol

pytestmark = pytest.mark.cluster
PROMPT = "canary prompt: search 2 times, say 12 words"
SEARCH: Any = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
HELLO: anthropic.types.MessageParam = {"role": "user", "content": PROMPT}
CONTEXT = 2000
EACH = 10 * 10**6
"""Nano-USD for a search, as the simulator charges."""


class Callers(OfficialClients):
    """Of a gateway whose provider may search, keep and read files."""

    async def agree(self, searches: int) -> None:
        """The provider's bill and the ledger's rows are the same, searches among them."""
        found = await self.metered()
        tokens = sum(600 * (row.tokens_in + row.tokens_out) for row in found)
        assert sum(row.cost for row in found) == tokens + searches * EACH


@pytest.fixture
async def callers(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> AsyncIterator[Callers]:
    allowed = {"context_bound": CONTEXT, "stored": True, "files": True}
    models = (model("finder", "finder").model_copy(update=allowed), model("small", "small"))
    spoken = {"protocol": Protocol.ANTHROPIC, "key_header": KeyHeader.X_API_KEY}
    providers = (
        provider("sim", simulator.port, models=models),
        provider("claude", simulator.port, models=models, **spoken),
    )
    mine = account(namespace, USD, providers=("sim", "claude"), ladder=("finder", "small"))
    await gateway.configure(config(namespace, (mine,), providers, generation=2))
    async with Callers.of(gateway, simulator) as clients:
        yield clients


async def test_anthropic_searches_the_web(callers: Callers) -> None:
    client = callers.anthropic
    plain = await client.messages.create(
        model="claude/finder", max_tokens=50, messages=[HELLO], tools=[SEARCH]
    )
    assert plain.usage.server_tool_use is not None
    assert plain.usage.server_tool_use.web_search_requests == 2
    async with client.messages.stream(
        model="claude/finder", max_tokens=50, messages=[HELLO], tools=[SEARCH]
    ) as stream:
        final = await stream.get_final_message()
    assert [block.type for block in final.content][:2] == [
        "server_tool_use",
        "web_search_tool_result",
    ]
    await callers.agree(searches=4)
    held = (await rows(callers.gateway))[0].held
    assert held == 11 * 600 * (CONTEXT + 50) + 3 * EACH
    # What an answer cited may be sent back, also without the tool.
    again: Any = [HELLO, {"role": "assistant", "content": plain.to_dict()["content"]}, HELLO]
    await client.messages.create(model="claude/finder", max_tokens=50, messages=again)
    await callers.agree(searches=4)


async def test_openai_searches_the_web(callers: Callers) -> None:
    client = callers.openai
    asked: Any = {"tools": [{"type": "web_search"}], "max_tool_calls": 2, "max_output_tokens": 50}
    plain = await client.responses.create(model="sim/finder", input=PROMPT, **asked)
    assert [item.type for item in plain.output] == ["web_search_call", "web_search_call", "message"]
    stream = await client.responses.create(model="sim/finder", input=PROMPT, stream=True, **asked)
    assert [event.type async for event in stream][-1] == "response.completed"
    await callers.agree(searches=4)
    assert (await rows(callers.gateway))[0].held == 4 * 600 * (CONTEXT + 50) + 2 * EACH


async def test_a_stored_response_is_gone_on_from(callers: Callers) -> None:
    client = callers.openai
    first = await client.responses.create(
        model="sim/finder", input=PROMPT, store=True, max_output_tokens=50
    )
    second = await client.responses.create(
        model="sim/finder", input="and?", previous_response_id=first.id, max_output_tokens=50
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    await callers.agree(searches=0)
    earlier, later = await rows(callers.gateway)
    assert earlier.held < later.held == 600 * (CONTEXT + 50)
    # What was not to be stored is not known any more.
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(
            model="sim/finder", input="and?", previous_response_id=second.id
        )


async def test_files_are_read_as_a_whole_context(callers: Callers) -> None:
    data = "JVBERi0xLjQK" * 1000
    pdf: Any = {"type": "base64", "media_type": "application/pdf", "data": data}
    await callers.anthropic.messages.create(
        model="claude/finder",
        max_tokens=50,
        messages=[{"role": "user", "content": [{"type": "document", "source": pdf}]}],
    )
    part: Any = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:;base64,{data}"}}
    await callers.openai.chat.completions.create(
        model="sim/finder", max_tokens=50, messages=[{"role": "user", "content": [part]}]
    )
    item: Any = {"role": "user", "content": [{"type": "input_file", "file_url": "https://a.b/c"}]}
    await callers.openai.responses.create(model="sim/finder", max_output_tokens=50, input=[item])
    assert [row.held for row in await rows(callers.gateway)] == [600 * (CONTEXT + 50)] * 3


async def test_what_the_resource_does_not_name_is_refused_by_its_field(callers: Callers) -> None:
    tools: Any = [{"type": "web_search"}]
    with pytest.raises(openai.BadRequestError, match=r"Field tools is refused.*webSearchPer1K"):
        await callers.openai.responses.create(
            model="sim/small", input="x", tools=tools, max_tool_calls=1
        )
    with pytest.raises(openai.BadRequestError, match="max_tool_calls"):
        await callers.openai.responses.create(model="sim/finder", input="x", tools=tools)
    with pytest.raises(openai.BadRequestError, match=r"Field store is refused.*storedResponses"):
        await callers.openai.responses.create(model="sim/small", input="x", store=True)
    pdf: Any = {"type": "url", "url": "https://papers.example/a.pdf"}
    with pytest.raises(anthropic.BadRequestError, match=r"Field messages.*hosted\.files"):
        await callers.anthropic.messages.create(
            model="claude/small",
            max_tokens=5,
            messages=[{"role": "user", "content": [{"type": "document", "source": pdf}]}],
        )
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\].max_uses"):
        await callers.anthropic.messages.create(
            model="claude/finder",
            max_tokens=5,
            messages=[HELLO],
            tools=[{"type": "web_search_20250305", "name": "web_search"}],
        )
    assert (await callers.simulator.bill())["calls"] == 0
