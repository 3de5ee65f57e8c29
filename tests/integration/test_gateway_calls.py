"""Calls through a real gateway process: identity, money, refusals, providers that misbehave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx
import openai
import pytest
from tests.support.gateway_process import (
    KEY,
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    post,
    provider,
    rows,
)

from llmbudget.api.budget import OnExceeded
from llmbudget.api.money import parse_usd
from llmbudget.clients.cluster import Cluster
from llmbudget.contract.config import ConsumerConfig, Limits

pytestmark = pytest.mark.cluster


async def test_a_call_is_answered_and_charged_to_the_nano(
    gateway: GatewayProcess, simulator: Simulator
) -> None:
    answer = await post(gateway, body(), x_llmbudget_task_id="task-7")
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    cost = (usage["prompt_tokens"] + usage["completion_tokens"]) * 600
    assert parse_usd(answer.headers["x-llmbudget-cost-usd"]) == cost
    assert answer.headers["x-llmbudget-model"] == "small"
    assert parse_usd(answer.headers["x-llmbudget-remaining-usd"]) == USD - cost
    assert int(answer.headers["x-llmbudget-remaining-tokens"]) == (USD - cost) // 600
    entry_id = answer.headers["x-llmbudget-entry-id"]
    async with httpx.AsyncClient(trust_env=False) as client:
        mine = await client.get(
            f"{gateway.url}/ledger/v1/calls/{entry_id}",
            headers={"x-api-key": await gateway.token()},
        )
    assert mine.json()["cost_usd"] == answer.headers["x-llmbudget-cost-usd"]
    (row,) = await rows(gateway)
    assert (row.id, row.cost, row.task_id, row.agent) == (entry_id, cost, "task-7", "researcher")
    assert (row.tokens_in, row.tokens_out) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (await simulator.bill())["nano"] == cost


async def test_the_official_sdk_plain_and_streamed(gateway: GatewayProcess) -> None:
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=await gateway.token())
    async with client:
        models = [m.id async for m in await client.models.list()]
        assert {"large", "small", "free"} <= set(models)
        plain = await client.chat.completions.create(**body(words=5))
        assert plain.usage is not None
        assert plain.usage.completion_tokens == 5
        stream = await client.chat.completions.create(**body(words=5), stream=True)
        chunks = [chunk async for chunk in stream]
        assert all(chunk.choices for chunk in chunks), "the usage chunk was not asked for"
        asked = await client.chat.completions.create(
            **body(words=5), stream=True, stream_options={"include_usage": True}
        )
        assert [c.usage for c in [chunk async for chunk in asked] if c.usage]
    first, *others = await rows(gateway)
    assert [row.cost for row in others] == [first.cost, first.cost]


async def test_a_stream_ends_with_its_cost(gateway: GatewayProcess) -> None:
    answer = await post(gateway, body(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    hold = parse_usd(answer.headers["x-llmbudget-cost-usd"])
    (row,) = await rows(gateway)
    assert 0 < row.cost <= hold
    lines = answer.text.rstrip().splitlines()
    assert lines[-1] == "data: [DONE]"
    comment = next(line for line in lines if line.startswith(": llmbudget"))
    fields = dict(part.split("=") for part in comment.split()[2:])
    assert parse_usd(fields["cost_usd"]) == row.cost
    assert fields["entry_id"] == row.id


async def test_nobody_unknown_gets_a_byte_upstream(
    gateway: GatewayProcess, simulator: Simulator
) -> None:
    cases = [
        (None, 401, "Bearer TOKEN"),
        ("nonsense", 401, "doesn't accept this token"),
        (await gateway.token(audience="another"), 401, "audience llmbudget"),
        (await gateway.token("default"), 403, "No budget names"),
    ]
    async with httpx.AsyncClient(trust_env=False) as client:
        for token, status, says in cases:
            headers = {"authorization": f"Bearer {token}"} if token else {}
            answer = await client.post(
                f"{gateway.url}/v1/chat/completions", json=body(), headers=headers
            )
            assert answer.status_code == status, answer.text
            assert says in answer.json()["error"]["message"]
            assert answer.headers["x-should-retry"] == "false"
    assert (await simulator.bill())["calls"] == 0


async def test_a_deleted_pods_token_is_refused_within_20_seconds(
    gateway: GatewayProcess, kubectl: Callable[..., str]
) -> None:
    container = {"name": "main", "image": "none.example/none"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "short-lived", "namespace": gateway.namespace},
        "spec": {"serviceAccountName": "researcher", "containers": [container]},
    }
    await gateway.cluster.create(pod)
    bound = ("--bound-object-kind=Pod", "--bound-object-name=short-lived")
    asked = ("create", "token", "researcher", "--audience=llmbudget", *bound)
    token = kubectl("-n", gateway.namespace, *asked).strip()
    assert (await post(gateway, body(), token)).status_code == 200
    kubectl("-n", gateway.namespace, "delete", "pod", "short-lived", "--grace-period=0", "--force")
    deadline = time.monotonic() + 20
    while (answer := await post(gateway, body(), token)).status_code == 200:
        assert time.monotonic() < deadline, "its token is still good"
        await asyncio.sleep(0.5)
    assert answer.status_code == 401


BAD_REQUESTS = [
    (b"{", 400, "JSON"),
    (b"[1]", 400, "no JSON object"),
    (b'{"model": "small", "model": "large"}', 400, ""),
    (b'{"model": "small", "messages": [], "temperature": NaN}', 400, ""),
    (b"\xff\xfe", 400, ""),
    (body("gpt-99"), 403, "gpt-99"),
    (body(web_search_options={}), 400, "web_search_options"),
    (body(n=0), 400, "n"),
    (body(max_tokens=-1), 400, "max_tokens"),
    (b'{"x": "' + b"a" * 20_000_000 + b'"}', 413, "10485760 bytes"),
]


async def test_bad_requests_never_leave(gateway: GatewayProcess, simulator: Simulator) -> None:
    for document, status, says in BAD_REQUESTS:
        answer = await post(gateway, document)
        assert answer.status_code == status, answer.text
        assert says in answer.json()["error"]["message"]
    assert (await simulator.bill())["calls"] == 0


async def test_other_paths_and_methods(gateway: GatewayProcess) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{gateway.url}/v1/files")).status_code == 404
        assert (await client.get(f"{gateway.url}/v1/chat/completions")).status_code == 405
        assert (await client.post(f"{gateway.url}/v1/../v1/files")).status_code == 404


MISBEHAVING = [
    ("no-usage", 200, "hold"),
    ("negative-usage", 200, "hold"),
    ("absurd-usage", 200, "hold"),
    ("garbage", None, "hold"),
    ("hang", 502, "hold"),
    ("reset", 502, "hold"),
    ("cut", None, "hold"),
    ("redirect", 502, "hold"),
    ("status-504", 502, "hold"),
    ("status-500", 502, 0),
    ("status-400", 400, 0),
    ("status-401", 502, 0),
    ("status-429", 429, 0),
    ("echo", 400, 0),
]
"""How the provider fails, what the caller sees (None: a cut answer), and what it is charged."""


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_that_misbehaves(gateway: GatewayProcess, stream: bool) -> None:
    for number, (mode, status, charged) in enumerate(MISBEHAVING):
        try:
            answer = await post(gateway, body(f"small@{mode}", stream=stream))
            if status is not None and not (stream and mode == "garbage"):
                assert answer.status_code == status, (mode, answer.text)
            assert KEY not in answer.text, mode
            assert KEY not in str(answer.headers), mode
        except httpx.RemoteProtocolError:
            assert status is None, f"{mode}: the answer was cut though its status is known"
        found = await rows(gateway)
        assert len(found) == number + 1, mode
        row = found[-1]
        if charged == "hold":
            assert row.cost == row.held > 0, mode
            assert row.outcome == "unknown", mode
        else:
            assert row.cost == 0, mode
            assert row.status == "error", mode


async def test_the_cap_stops_and_says_why(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    small = account(namespace, 3_000_000)
    await gateway.configure(
        config(namespace, (small,), (provider("sim", simulator.port),), generation=2)
    )
    token = await gateway.token()
    answers = await asyncio.gather(*(post(gateway, body(), token) for _ in range(200)))
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 402}, [a.text for a in answers if a.status_code not in (200, 402)]
    refused = next(answer for answer in answers if answer.status_code == 402)
    error = refused.json()["error"]
    assert (error["type"], refused.headers["x-should-retry"]) == ("insufficient_quota", "false")
    assert {"asked_usd", "left_usd", "resets_at"} <= set(error)
    bill = await simulator.bill()
    assert 2_700_000 < int(bill["nano"]) <= 3_000_000
    assert sum(row.cost for row in await rows(gateway)) == int(bill["nano"])


async def test_a_repeated_call_is_not_sent_twice(
    gateway: GatewayProcess, simulator: Simulator
) -> None:
    first = await post(gateway, body(), idempotency_key="one")
    again = await post(gateway, body(), idempotency_key="one")
    other = await post(gateway, body(words=3), idempotency_key="one")
    assert (first.status_code, again.status_code, other.status_code) == (200, 409, 422)
    error = again.json()["error"]
    assert error["entry_id"] == first.headers["x-llmbudget-entry-id"]
    assert error["cost_usd"] == first.headers["x-llmbudget-cost-usd"]
    assert (await simulator.bill())["calls"] == 1


async def test_a_failing_provider_is_replaced(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    away = provider("away", 1)
    both = account(namespace, USD, providers=("away", "sim"), retries=1)
    providers = (away, provider("sim", simulator.port))
    await gateway.configure(config(namespace, (both,), providers, generation=2))
    await asyncio.sleep(0.5)
    answer = await post(gateway, body())
    assert answer.status_code == 200, answer.text
    found = [(row.provider, row.status, row.cost > 0) for row in await rows(gateway)]
    assert found == [("away", "error", False), ("sim", "fallback", True)]


async def test_keys_rotate_without_a_restart(gateway: GatewayProcess) -> None:
    key = gateway.folder / "keys" / "sim"
    key.unlink()
    await asyncio.sleep(1.1)
    missing = await post(gateway, body())
    assert missing.status_code == 503
    assert "no key for provider sim" in missing.json()["error"]["message"]
    key.write_text("wrong")
    await asyncio.sleep(1.1)
    assert (await post(gateway, body())).status_code == 502
    key.write_text(KEY)
    await asyncio.sleep(1.1)
    assert (await post(gateway, body())).status_code == 200


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("auto", "large"),
        ("auto:cheapest", "free"),
        ("auto:fastest", "free"),
        ("sim/small", "small"),
    ],
)
async def test_the_gateway_chooses(
    gateway: GatewayProcess, namespace: str, simulator: Simulator, asked: str, served: str
) -> None:
    plain = provider("sim", simulator.port)
    models = tuple(model for model in plain.models if "@" not in model.name)
    only = provider("sim", simulator.port, models=models)
    await gateway.configure(config(namespace, (account(namespace, USD),), (only,), generation=2))
    await asyncio.sleep(0.5)
    answer = await post(gateway, body(asked))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-llmbudget-model"] == served


async def test_without_money_what_costs_nothing_goes_on(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    spent = account(namespace, 0, on_exceeded=OnExceeded.DOWNGRADE)
    await gateway.configure(
        config(namespace, (spent,), (provider("sim", simulator.port),), generation=2)
    )
    await asyncio.sleep(0.5)
    answer = await post(gateway, body("large"))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-llmbudget-model"] == "free"
    assert answer.headers["x-llmbudget-downgraded-from"] == "large"


async def test_a_configuration_that_is_wrong_leaves_the_last_one_in_force(
    gateway: GatewayProcess, cluster: Cluster, namespace: str, simulator: Simulator
) -> None:
    metadata = {"name": "team-a-gateway", "namespace": namespace}
    for data in ({"gateway.json": '{"generation": 2}'}, {"gateway.json": "{"}, {}):
        await cluster.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        )
        await asyncio.sleep(0.5)
        assert (await post(gateway, body())).status_code == 200
    assert gateway.log.read_text().count("configuration refused") == 3
    nobody = account(namespace, USD, consumers=())
    await gateway.configure(
        config(namespace, (nobody,), (provider("sim", simulator.port),), generation=3)
    )
    await asyncio.sleep(0.5)
    assert (await post(gateway, body())).status_code == 403


async def test_a_consumers_limits(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    limited = ConsumerConfig(
        namespace=namespace,
        service_accounts=("researcher",),
        limits=Limits(requests_per_minute=5),
    )
    mine = account(namespace, USD, consumers=(limited,))
    await gateway.configure(
        config(namespace, (mine,), (provider("sim", simulator.port),), generation=2)
    )
    await asyncio.sleep(0.5)
    token = await gateway.token()
    answers = [await post(gateway, body(), token) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 12
    assert (await simulator.bill())["calls"] == 5
