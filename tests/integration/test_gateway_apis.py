"""Every operation through the official clients, plain and streamed, charged to the nano."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import SecretStr
from tests.support.gateway_process import (
    KEY,
    USD,
    GatewayProcess,
    Simulator,
    Threshold,
    account,
    config,
    model,
    provider,
    rows,
)
from tests.support.official_clients import OfficialClients

from llmbudget.api.budget import Action, OnExceeded
from llmbudget.api.credentials import KeyHeader
from llmbudget.api.provider import Protocol

pytestmark = pytest.mark.cluster
HELLO = "canary prompt: say 12 words"


class Callers(OfficialClients):
    """Of a gateway whose providers speak each protocol, and Azure's older paths."""

    async def agree(self, calls: int) -> None:
        """The provider's bill and the ledger's rows are the same, each call metered."""
        assert len(await self.metered()) == calls


@pytest.fixture
async def callers(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> AsyncIterator[Callers]:
    spoken = {"protocol": Protocol.ANTHROPIC, "key_header": KeyHeader.X_API_KEY}
    older = {
        **{"endpoint": f"http://127.0.0.1:{simulator.port}", "api_version": "2024-10-21"},
        "key_header": KeyHeader.API_KEY,
    }
    providers = (
        provider("sim", simulator.port),
        provider("claude", simulator.port, **spoken),
        provider("azure", simulator.port, **older),
    )
    mine = account(namespace, USD, providers=("sim", "claude", "azure"))
    await gateway.configure(config(namespace, (mine,), providers, generation=2))
    async with Callers.of(gateway, simulator) as clients:
        yield clients


async def test_responses(callers: Callers) -> None:
    client = callers.openai
    plain = await client.responses.create(model="small", input=HELLO, max_output_tokens=50)
    assert plain.usage is not None
    assert plain.usage.output_tokens == 12
    assert plain.output_text.startswith("money is counted")
    stream = await client.responses.create(
        model="small", input=HELLO, max_output_tokens=50, stream=True
    )
    events = [event async for event in stream]
    assert events[-1].type == "response.completed"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta")
    await callers.agree(2)


async def test_messages(callers: Callers) -> None:
    client = callers.anthropic
    hello: anthropic.types.MessageParam = {"role": "user", "content": HELLO}
    plain = await client.messages.create(model="small", max_tokens=50, messages=[hello])
    assert plain.usage.output_tokens == 12
    raw = await client.messages.with_raw_response.create(
        model="small", max_tokens=50, messages=[hello]
    )
    assert raw.headers["x-llmbudget-model"] == "small"
    async with client.messages.stream(model="small", max_tokens=50, messages=[hello]) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text.startswith("money is counted")
    assert final.usage.output_tokens == 12
    await callers.agree(3)
    counted = await client.messages.count_tokens(model="small", messages=[hello])
    assert counted.input_tokens > 0
    assert (await rows(callers.gateway))[-1].cost == 0
    assert [model.id async for model in client.models.list()]


async def test_refusals_come_in_anthropics_form(callers: Callers) -> None:
    client = callers.anthropic
    hello: anthropic.types.MessageParam = {"role": "user", "content": HELLO}
    with pytest.raises(anthropic.PermissionDeniedError, match="gpt-99"):
        await client.messages.create(model="gpt-99", max_tokens=50, messages=[hello])
    with pytest.raises(anthropic.BadRequestError, match="container"):
        await client.messages.create(
            model="small", max_tokens=5, messages=[hello], extra_body={"container": "c"}
        )
    with pytest.raises(anthropic.BadRequestError, match="context-1m"):
        await client.messages.create(
            model="small",
            max_tokens=5,
            messages=[hello],
            extra_headers={"anthropic-beta": "context-1m-2025-08-07"},
        )
    with pytest.raises(anthropic.APIStatusError) as refused:
        await client.messages.create(
            model="large", max_tokens=8_000_000, messages=[hello], timeout=20
        )
    assert refused.value.status_code == 402
    assert refused.value.body["error"]["type"] == "billing_error"  # type: ignore[index]
    assert (await callers.simulator.bill())["calls"] == 0


async def test_completions_embeddings_and_moderations(callers: Callers) -> None:
    client = callers.openai
    text = await client.completions.create(model="small", prompt=HELLO, max_tokens=50)
    assert text.choices[0].text.startswith("money")
    both = await client.completions.create(
        model="small", prompt=["say 3 words", "say 3 words"], max_tokens=50, n=2
    )
    assert len(both.choices) == 4
    stream = await client.completions.create(
        model="small", prompt=HELLO, max_tokens=50, stream=True
    )
    assert "".join([c.choices[0].text async for c in stream if c.choices[0].finish_reason is None])
    vectors = await client.embeddings.create(
        model="small", input=[HELLO, "another"], encoding_format="float"
    )
    assert vectors.usage.prompt_tokens > 0
    await callers.agree(4)
    checked = await client.moderations.create(model="free", input=HELLO)
    assert checked.results[0].flagged is False
    with pytest.raises(openai.PermissionDeniedError):
        await client.embeddings.create(model="auto", input=HELLO)


async def test_streams_in_doubt_are_charged_at_the_hold(callers: Callers) -> None:
    hello: anthropic.types.MessageParam = {"role": "user", "content": HELLO}
    modes = ("no-usage", "negative-usage", "absurd-usage", "cut", "garbage", "reset", "hang")
    for mode in modes:
        name, limit = f"sim/small@{mode}", {"stream": True, "max_tokens": 50}
        with contextlib.suppress(openai.OpenAIError, httpx.HTTPError, ValueError):
            answer = await callers.openai.responses.create(
                model=name, input=HELLO, stream=True, max_output_tokens=50
            )
            assert [event async for event in answer]
        with contextlib.suppress(openai.OpenAIError, httpx.HTTPError, ValueError):
            text = await callers.openai.completions.create(model=name, prompt=HELLO, **limit)  # type: ignore[call-overload]
            assert [chunk async for chunk in text]
        with contextlib.suppress(anthropic.AnthropicError, httpx.HTTPError, ValueError):
            said = await callers.anthropic.messages.create(  # type: ignore[call-overload]
                model=f"claude/small@{mode}", messages=[hello], **limit
            )
            assert [event async for event in said]
    found = await rows(callers.gateway)
    assert [row.outcome for row in found] == ["unknown"] * 3 * len(modes)
    assert all(row.cost == row.held > 0 for row in found)
    assert (await callers.simulator.bill())["calls"] == len(found)


async def test_azure_is_called_at_its_deployments(callers: Callers) -> None:
    client, hello = callers.openai, {"role": "user", "content": HELLO}
    chat = await client.chat.completions.create(model="azure/small", messages=[hello])  # type: ignore[list-item]
    assert chat.choices[0].message.content
    stream = await client.responses.create(model="azure/small", input=HELLO, stream=True)
    assert [event.type async for event in stream][-1] == "response.completed"
    await client.embeddings.create(model="azure/small", input=HELLO)
    await callers.agree(3)
    assert {row.provider for row in await rows(callers.gateway)} == {"azure"}


async def test_azures_own_client_is_served(callers: Callers) -> None:
    where, token = callers.gateway.url, await callers.gateway.token()
    hello: list[ChatCompletionMessageParam] = [{"role": "user", "content": HELLO}]
    version = "2024-10-21"
    clients = (
        openai.AsyncAzureOpenAI(azure_endpoint=where, api_version=version, api_key=token),
        openai.AsyncAzureOpenAI(
            azure_endpoint=where, api_version=version, azure_ad_token_provider=lambda: token
        ),
    )
    for client in clients:
        async with client:
            plain = await client.chat.completions.create(model="small", messages=hello)
            assert plain.choices[0].message.content
            stream = await client.chat.completions.create(
                model="sim/small", messages=hello, stream=True
            )
            assert [chunk async for chunk in stream]
            await client.responses.create(model="small", input=HELLO)
            await client.embeddings.create(model="small", input=HELLO)
            assert [model async for model in client.models.list()]
    await callers.agree(8)
    # A client of one deployment calls that one, whatever the model is called.
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=where, api_version=version, api_key=token, azure_deployment="large"
    ) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="gpt-4o", messages=hello, max_tokens=20
        )
        assert raw.headers["x-llmbudget-model"] == "large"
        with pytest.raises(openai.NotFoundError, match="There is nothing at"):
            await client.images.edit(model="x", image=b"x", prompt="x")
    async with openai.AsyncOpenAI(base_url=f"{where}/openai/v1", api_key=token) as newer:
        await newer.chat.completions.create(model="small", messages=hello)
    await callers.agree(10)


async def test_a_long_input_is_charged_at_the_price_of_its_length(callers: Callers) -> None:
    client = callers.openai
    for read in ("", "far " * 400):
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": read + HELLO}]
        await client.chat.completions.create(model="long", messages=messages, max_tokens=50)
    await callers.agree(2)
    short, long = await rows(callers.gateway)
    assert short.cost == short.tokens_in * 1_000 + 12 * 4_000
    assert long.cost == long.tokens_in * 2_000 + 12 * 6_000


@pytest.mark.parametrize("asked", ["default", "flex", "priority"])
async def test_a_service_tier_is_charged_as_it_was_served(callers: Callers, asked: str) -> None:
    client, tier = callers.openai, {"service_tier": asked}
    hello: list[ChatCompletionMessageParam] = [{"role": "user", "content": HELLO}]
    for name in ("sim/tiered", "sim/tiered@usual-tier"):
        plain = await client.chat.completions.create(model=name, messages=hello, extra_body=tier)
        assert plain.service_tier == (asked if name == "sim/tiered" else "default")
        stream = await client.chat.completions.create(
            model=name, messages=hello, stream=True, extra_body=tier
        )
        assert [chunk async for chunk in stream]
        await client.responses.create(model=name, input=HELLO, extra_body=tier)
        events = await client.responses.create(
            model=name, input=HELLO, stream=True, extra_body=tier
        )
        assert [event async for event in events]
    await callers.agree(8)
    found = await rows(callers.gateway)
    rate = {"default": 2_000, "flex": 1_000, "priority": 3_500}[asked]
    assert found[0].cost == rate * (found[0].tokens_in + 4 * 12)
    assert found[4].cost == 2_000 * (found[4].tokens_in + 4 * 12)
    assert found[0].held % max(rate, 2_000) == 0


async def moved_in_tier(callers: Callers, namespace: str, asked: str) -> None:
    """Call a model with tiers, plain and streamed, that another one without them stands in for."""
    client, tier = callers.openai, {"service_tier": asked}
    hello: list[ChatCompletionMessageParam] = [{"role": "user", "content": HELLO}]
    before = len(await rows(callers.gateway))
    for stream in (False, True):
        chat = await client.chat.completions.with_raw_response.create(
            model="tiered", messages=hello, stream=stream, extra_body=tier
        )
        response = await client.responses.with_raw_response.create(
            model="tiered", input=HELLO, stream=stream, extra_body=tier
        )
        for answer in (chat, response):
            assert answer.headers["x-llmbudget-service-tier"] == "default"
            parsed = answer.parse()
            if stream:
                assert [event async for event in parsed]
            else:
                # The provider tells back what it was asked for: nothing.
                assert parsed.service_tier is None
    await callers.agree(before + 4)


@pytest.mark.parametrize("asked", ["flex", "priority"])
async def test_a_downgraded_call_goes_in_the_usual_tier_where_the_cheaper_model_has_no_other(
    callers: Callers, namespace: str, simulator: Simulator, asked: str
) -> None:
    """It is the budget that chose the model: the caller can't be told to ask it otherwise."""
    crossed = Threshold(percentage=1, action=Action.DOWNGRADE_MODELS)
    lowered = account(namespace, USD // 200, ladder=("tiered", "small"), thresholds=(crossed,))
    await callers.gateway.configure(
        config(namespace, (lowered,), (provider("sim", simulator.port),), generation=3)
    )
    await asyncio.sleep(0.5)
    hello: list[ChatCompletionMessageParam] = [{"role": "user", "content": HELLO}]
    first = await callers.openai.chat.completions.with_raw_response.create(
        model="tiered", messages=hello, extra_body={"service_tier": asked}
    )
    assert first.headers["x-llmbudget-model"] == "tiered"
    assert "x-llmbudget-service-tier" not in first.headers
    await moved_in_tier(callers, namespace, asked)
    models = [row.model for row in await rows(callers.gateway)]
    assert models == ["tiered", "small", "small", "small", "small"]


async def test_without_money_a_free_model_answers_in_its_usual_tier(
    callers: Callers, namespace: str, simulator: Simulator
) -> None:
    spent = account(namespace, 0, on_exceeded=OnExceeded.DOWNGRADE)
    await callers.gateway.configure(
        config(namespace, (spent,), (provider("sim", simulator.port),), generation=3)
    )
    await asyncio.sleep(0.5)
    await moved_in_tier(callers, namespace, "priority")


async def test_the_next_provider_answers_in_its_usual_tier(
    callers: Callers, namespace: str, simulator: Simulator
) -> None:
    plain = model("tiered", "small").model_copy(update={"upstream_name": "small"})
    both = account(namespace, USD, providers=("away", "sim"), retries=1)
    providers = (provider("away", 1), provider("sim", simulator.port, models=(plain,)))
    await callers.gateway.configure(config(namespace, (both,), providers, generation=3))
    await asyncio.sleep(0.5)
    hello: list[ChatCompletionMessageParam] = [{"role": "user", "content": HELLO}]
    answer = await callers.openai.chat.completions.with_raw_response.create(
        model="tiered", messages=hello, extra_body={"service_tier": "flex"}
    )
    assert answer.headers["x-llmbudget-service-tier"] == "default"
    found = [(row.provider, row.status, row.cost > 0) for row in await rows(callers.gateway)]
    assert found == [("away", "error", False), ("sim", "fallback", True)]


async def test_a_service_tier_without_a_price_is_refused(callers: Callers) -> None:
    hello: list[ChatCompletionMessageParam] = [{"role": "user", "content": HELLO}]
    with pytest.raises(openai.BadRequestError, match=r"Field service_tier .*cost\.serviceTiers"):
        await callers.openai.chat.completions.create(
            model="small", messages=hello, service_tier="flex"
        )
    assert (await callers.simulator.bill())["calls"] == 0


PIXEL = "data:image/png;base64,iVBORw0KGgo="
LOOKUP: Any = {
    "type": "function",
    "function": {"name": "look_up", "description": "x", "parameters": {"type": "object"}},
}
PICTURES: Any = [
    {"type": "text", "text": HELLO},
    {"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}},
    {"type": "image_url", "image_url": {"url": "https://images.example/a.png"}},
]
CALLED: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": HELLO},
    {
        "role": "assistant",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "c", "content": "say 12 words"},
]


def chat_as_applications_do(client: openai.OpenAI) -> None:
    """Tools and their results, images, several answers, both names of the limit."""
    create = client.chat.completions.create
    seen: Any = [{"role": "user", "content": PICTURES}]
    assert create(model="seer", messages=seen, max_tokens=50).choices[0].message.content
    many = create(model="seer", messages=CALLED, tools=[LOOKUP], n=3, max_completion_tokens=50)
    assert len(many.choices) == 3
    with client.chat.completions.stream(
        model="seer", messages=seen, n=2, max_completion_tokens=50
    ) as stream:
        assert len(stream.get_final_completion().choices) == 2
    read = client.responses.create(
        model="seer",
        max_output_tokens=50,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": HELLO}]},
            {"type": "function_call", "call_id": "c", "name": "look_up", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "say 12 words"},
        ],
        tools=[{"type": "function", "strict": False, **LOOKUP["function"]}],
    )
    assert read.output_text


def messages_as_applications_do(client: anthropic.Anthropic) -> None:
    """Likewise, in Anthropic's words."""
    pixel: Any = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    there: Any = {"type": "url", "url": "https://images.example/a.png"}
    asked: Any = [{"type": "text", "text": HELLO}]
    asked += [{"type": "image", "source": source} for source in (pixel, there)]
    use: Any = {"type": "tool_use", "id": "t", "name": "look_up", "input": {}}
    result: Any = {"type": "tool_result", "tool_use_id": "t", "content": "say 12 words"}
    messages: Any = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    tools: Any = [{"name": "look_up", "input_schema": {"type": "object"}}]
    more = {"max_tokens": 50, "messages": messages, "tools": tools, "system": "Be brief."}
    assert client.messages.create(model="claude/seer", **more).usage.output_tokens == 12
    with client.messages.stream(model="claude/seer", **more) as stream:
        assert stream.get_final_text().startswith("money")


async def test_what_applications_send(callers: Callers) -> None:
    url, token = callers.gateway.url, await callers.gateway.token()
    with openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as client:
        await asyncio.to_thread(chat_as_applications_do, client)
    with anthropic.Anthropic(base_url=url, api_key=token, max_retries=0) as other:
        await asyncio.to_thread(messages_as_applications_do, other)
    await callers.agree(6)
    assert [row.tokens_out for row in await rows(callers.gateway)] == [12, 36, 24, 12, 12, 12]


async def test_images_are_held_for(callers: Callers) -> None:
    client = callers.openai
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    messages = [{"role": "user", "content": [{"type": "text", "text": HELLO}, image]}]
    with pytest.raises(openai.BadRequestError, match="imageTokens"):
        await client.chat.completions.create(model="small", messages=messages)  # type: ignore[arg-type]
    assert (await callers.simulator.bill())["calls"] == 0


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return city


async def test_langchain(callers: Callers) -> None:
    model = ChatOpenAI(
        model="small",
        base_url=f"{callers.gateway.url}/v1",
        api_key=SecretStr(await callers.gateway.token()),
        max_tokens=100,  # type: ignore[call-arg]
        stream_usage=True,
        max_retries=0,
    )
    plain = await model.ainvoke(HELLO)
    assert plain.usage_metadata is not None
    assert plain.usage_metadata["output_tokens"] == 12
    pieces = [piece async for piece in model.astream(HELLO)]
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) == 12
    assert len(pieces) > 2
    await model.bind_tools([weather]).ainvoke(HELLO)
    await asyncio.to_thread(model.invoke, HELLO)
    answers = await model.abatch([HELLO] * 4)
    assert all(answer.content for answer in answers)
    await callers.agree(8)


async def test_langchain_is_told_why_it_may_not(callers: Callers) -> None:
    model = ChatOpenAI(
        model="unknown",
        base_url=f"{callers.gateway.url}/v1",
        api_key=SecretStr(await callers.gateway.token()),
    )
    with pytest.raises(openai.PermissionDeniedError, match="unknown is not offered"):
        await model.ainvoke(HELLO)


@pytest.mark.parametrize("end", ["", "/"])
async def test_gemini_by_its_compatible_endpoint(
    callers: Callers, namespace: str, simulator: Simulator, end: str
) -> None:
    """Its thoughts stand in the total alone, its streams have figures in each chunk, and its
    documentation writes the endpoint with a slash at the end."""
    gemini = provider(
        "gemini",
        simulator.port,
        endpoint=f"http://127.0.0.1:{simulator.port}/v1beta/openai{end}",
        models=(model("small", "small"), model("free", "free"), model("small@no-usage", "small")),
    )
    (callers.gateway.folder / "keys" / "gemini").write_text(KEY)
    mine = account(namespace, USD, providers=("gemini",))
    await callers.gateway.configure(config(namespace, (mine,), (gemini,), generation=3))
    await asyncio.sleep(0.5)
    client = callers.openai
    hello: list[ChatCompletionMessageParam] = [{"role": "user", "content": HELLO}]
    plain = await client.chat.completions.create(model="small", messages=hello, max_tokens=50)
    assert plain.usage is not None
    assert (plain.usage.completion_tokens, plain.usage.total_tokens) == (
        6,
        plain.usage.prompt_tokens + 12,
    )
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    await client.chat.completions.create(model="small", messages=hello, tools=tools, n=2)
    for options in ({}, {"stream_options": {"include_usage": True}}):
        stream = await client.chat.completions.create(
            model="small", messages=hello, max_tokens=50, stream=True, **options
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks).startswith("money is")
    embedded = await client.embeddings.create(model="free", input="canary prompt")
    assert embedded.data
    await callers.agree(5)
    found = await rows(callers.gateway)
    assert [row.tokens_out for row in found] == [12, 24, 12, 12, 0]
    # What it does not tell is charged at the hold.
    await client.chat.completions.create(model="small@no-usage", messages=hello, max_tokens=50)
    last = (await rows(callers.gateway))[-1]
    assert last.cost == last.held > 0
