"""The provider simulator: its bill is what everything else is checked against."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from llmbudget.local.bill import Bill, Prices
from llmbudget.local.http1 import port_of, serve
from llmbudget.local.provider import Simulator, command

TABLE = {
    "large": {"inputPer1K": "0.003", "outputPer1K": "0.015"},
    "odd": {"inputPer1K": "0.0000001", "outputPer1K": "0.000000001"},
}
MESSAGES = [{"role": "user", "content": "Tell me about money in 37 words."}]


@pytest.fixture
def bill_file(tmp_path: Path) -> Path:
    return tmp_path / "bill.jsonl"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("sk-right\n")
    return path


@pytest.fixture
async def client(bill_file: Path, key_file: Path) -> AsyncIterator[httpx.AsyncClient]:
    simulator = Simulator(Prices(TABLE), Bill(bill_file), key_file, latency=0, output_tokens=64)
    server = await serve(simulator.handle, 0)
    async with (
        server,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port_of(server)}",
            headers={"authorization": "Bearer sk-right"},
            trust_env=False,
            timeout=60,
        ) as client,
    ):
        yield client


def rows(bill_file: Path) -> list[int]:
    return [json.loads(line)["nano"] for line in bill_file.read_text().splitlines()]


def rotate(key_file: Path) -> None:
    key_file.write_text("sk-next\n")


async def chat(client: httpx.AsyncClient, model: str = "large", **fields: object) -> httpx.Response:
    body = {"model": model, "messages": MESSAGES, **fields}
    return await client.post("/v1/chat/completions", json=body, timeout=5)


async def test_a_call_is_answered_and_billed_exactly(
    client: httpx.AsyncClient, bill_file: Path
) -> None:
    answer = (await chat(client)).json()
    usage = answer["usage"]
    assert (
        usage["completion_tokens"] == 37 == len(answer["choices"][0]["message"]["content"].split())
    )
    expected = usage["prompt_tokens"] * 3_000 + 37 * 15_000
    assert rows(bill_file) == [expected]
    assert (await client.get("/bill")).json()["nano"] == expected


async def test_a_limit_bounds_the_answer_and_choices_multiply_it(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, max_tokens=10, n=3)).json()
    assert answer["usage"]["completion_tokens"] == 30
    assert len(answer["choices"]) == 3


async def test_a_stream_ends_with_usage_only_where_asked(client: httpx.AsyncClient) -> None:
    plain = await chat(client, stream=True)
    asked = await chat(client, stream=True, stream_options={"include_usage": True})
    assert "usage" not in plain.text
    events = [line.removeprefix("data: ") for line in asked.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 37
    text = "".join(
        choice["delta"].get("content", "")
        for event in events[:-1]
        for choice in json.loads(event)["choices"]
    )
    assert len(text.split()) == 37


@pytest.mark.parametrize("mode", ["reset", "cut", "garbage", "no-usage", "negative-usage"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_goes_wrong_after_acceptance_is_charged(
    client: httpx.AsyncClient, mode: str, stream: bool
) -> None:
    try:
        body = (await chat(client, f"large@{mode}", stream=stream)).text
    except httpx.TransportError:
        assert mode in ("reset", "cut", "garbage")
    else:
        assert mode in ("garbage", "no-usage", "negative-usage")
        assert 'prompt_tokens": 1' not in body
    assert (await client.get("/bill")).json()["calls"] == 1


async def test_a_call_that_hangs_is_on_the_bill_while_it_hangs(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await client.post(
            "/v1/chat/completions", json={"model": "large@hang", "messages": MESSAGES}, timeout=0.2
        )
    assert (await client.get("/bill")).json()["calls"] == 1


@pytest.mark.parametrize(
    ("mode", "status"),
    [("status-429", 429), ("status-503", 503), ("redirect", 307), ("echo", 400)],
)
async def test_complete_error_answers_cost_nothing(
    client: httpx.AsyncClient, mode: str, status: int
) -> None:
    answer = await chat(client, f"large@{mode}")
    assert answer.status_code == status
    assert ("sk-right" in answer.text) == (mode == "echo")
    assert (await client.get("/bill")).json()["calls"] == 0


async def test_the_key_may_rotate(client: httpx.AsyncClient, key_file: Path) -> None:
    rotate(key_file)
    assert (await chat(client)).status_code == 401
    bill = (await client.get("/bill")).json()
    assert (bill["requests"], bill["refused"], bill["calls"]) == (1, 1, 0)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"model": "none"}', b'{"model": "large", "messages": []}']
)
async def test_a_bad_request_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    assert (await client.post("/v1/chat/completions", content=body)).status_code == 400
    assert (await client.get("/bill")).json()["calls"] == 0


async def test_a_bill_survives_a_restart_and_many_callers(
    client: httpx.AsyncClient, bill_file: Path
) -> None:
    await asyncio.gather(*(chat(client) for _ in range(200)))
    total = (await client.get("/bill")).json()
    again = Bill(bill_file).total()
    assert again["calls"] == 200
    assert (again["nano"], again["models"]) == (total["nano"], total["models"])


@pytest.mark.parametrize(
    ("tokens_in", "tokens_out"), [(1, 0), (0, 1), (9, 9), (10, 0), (1_000_003, 7)]
)
def test_a_cost_is_exact_and_rounded_up_once(tokens_in: int, tokens_out: int) -> None:
    exact = Fraction(tokens_in, 10) + Fraction(tokens_out, 1000)
    cost = Prices(TABLE).cost("odd", tokens_in, tokens_out, {})
    assert exact <= cost < exact + 1


@pytest.mark.parametrize("table", ["[]", "nonsense", '{"m": 1}', '{"m": {"inputPer1K": "1"}}'])
def test_a_table_of_prices_that_is_none_is_named(table: str, tmp_path: Path) -> None:
    prices, keys = tmp_path / "prices.json", tmp_path / "keys"
    prices.write_text(table)
    keys.touch()
    given = [f"--prices={prices}", f"--keys={keys}", f"--bill={tmp_path / 'bill'}"]
    result = CliRunner().invoke(command, given)
    assert result.exit_code == 2
    assert f"{prices}: it is no table of prices such as" in result.output


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    prices, keys = tmp_path / "prices.json", tmp_path / "keys"
    prices.write_text("{}")
    keys.touch()
    given = [f"--prices={prices}", f"--keys={keys}", f"--bill={tmp_path / 'bill'}"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(command, [*given, f"--port={port}"])
    assert result.exit_code == 1
    assert f"('127.0.0.1', {port}): address already in use" in result.output
