"""The examples' clients check the gateway's certificate by the bundle that a variable names, and go
on with the new token when the old one is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from examples.clients import anthropic_sdk, langchain_sdk, openai_sdk
from tests.support.gateway_process import (
    KEY,
    USD,
    GatewayProcess,
    Simulator,
    account,
    config,
    provider,
    rows,
)

from llmbudget.api.credentials import KeyHeader
from llmbudget.api.provider import Protocol
from llmbudget.contract.config import ConsumerConfig

pytestmark = pytest.mark.cluster
PROMPT = "canary prompt: say 3 words"


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    return tmp_path / "tls"


def with_openai(url: str, token: Path) -> Callable[[], object]:
    client = openai_sdk.client(f"{url}/v1", token)
    messages = [{"role": "user", "content": PROMPT}]
    return lambda: client.chat.completions.create(model="small", messages=messages)  # type: ignore


def with_openai_async(url: str, token: Path) -> Callable[[], object]:
    messages = [{"role": "user", "content": PROMPT}]

    async def call() -> None:
        # Within one loop, as an application would; here a loop a call is simplest.
        async with openai_sdk.async_client(f"{url}/v1", token) as client:
            await client.chat.completions.create(model="small", messages=messages)  # type: ignore

    return lambda: asyncio.run(call())


def with_anthropic(url: str, token: Path) -> Callable[[], object]:
    client = anthropic_sdk.client(url, token)
    return lambda: client.messages.create(
        model="claude/small", max_tokens=50, messages=[{"role": "user", "content": PROMPT}]
    )


def with_langchain(url: str, token: Path) -> Callable[[], object]:
    client = langchain_sdk.client(f"{url}/v1", "small", token)
    return lambda: client.invoke(PROMPT)


@pytest.mark.parametrize("make", [with_openai, with_openai_async, with_anthropic, with_langchain])
async def test_a_rotated_token_is_used_at_once(
    gateway: GatewayProcess,
    namespace: str,
    simulator: Simulator,
    tmp_path: Path,
    make: Callable[[str, Path], Callable[[], object]],
) -> None:
    names = ("researcher", "writer")
    metadata = {"name": "writer", "namespace": namespace}
    await gateway.cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    )
    both = ConsumerConfig(namespace=namespace, service_accounts=names)
    mine = account(namespace, USD, providers=("sim", "claude"), consumers=(both,))
    spoken = {"protocol": Protocol.ANTHROPIC, "key_header": KeyHeader.X_API_KEY}
    providers = (provider("sim", simulator.port), provider("claude", simulator.port, **spoken))
    await gateway.configure(config(namespace, (mine,), providers, generation=2))
    (gateway.folder / "keys" / "claude").write_text(KEY)
    await asyncio.sleep(0.5)
    token = tmp_path / "token"
    token.write_text(await gateway.token(names[0]) + "\n")
    call = make(gateway.url, token)
    await asyncio.to_thread(call)
    # Another account's token stands for a newer one, so that the rows tell which was shown.
    token.write_text(await gateway.token(names[1]) + "\n")
    await asyncio.to_thread(call)
    assert tuple(row.agent for row in await rows(gateway)) == names
