"""One call through the gateway's own parts, with a provider that is a stand-in."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from tests.support.offers import offer
from tests.support.records import call_story

from llmbudget.api.money import format_usd
from llmbudget.contract.config import AccountConfig, ConsumerConfig, GatewayConfig
from llmbudget.decide.catalogue import catalogues
from llmbudget.decide.consumers import Consumers
from llmbudget.gateway.admission import Admission
from llmbudget.gateway.breaker import Breaker
from llmbudget.gateway.call import Calls
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.protocols.chat import CHAT
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.routes import Routes
from llmbudget.gateway.upstream import Answer, Upstream
from llmbudget.gateway.wire import Exchange, Headers, Request
from llmbudget.ledger.interface import Ledger
from llmbudget.ledger.sqlite import SqliteLedger
from llmbudget.telemetry import metrics

KEY = "sk-Canary-0123456789abcdef"
MODEL = "alone-model"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ACCOUNT = AccountConfig(
    name="ns/team",
    cap_nano=10**9,
    providers=("openrouter",),
    consumers=(ConsumerConfig(namespace="ns"),),
)
CONFIG = GatewayConfig(
    generation=1,
    root=ACCOUNT.name,
    operator="llmbudget-system/llmbudget-operator",
    accounts=(ACCOUNT,),
    providers=(offer(MODEL).provider,),
    endpoints=(),
)


class Provider:
    """Answers with what it was given, and is its own answer."""

    status = 200
    request_id = retry_after = None

    def __init__(self, content_type: str, *chunks: bytes) -> None:
        self.content_type = content_type
        self.chunks = list(chunks)
        self.key = ""
        self.breaker = Breaker()

    async def post(
        self, path: str, body: bytes, key: str, headers: Headers, content_type: str
    ) -> Answer:
        self.key = key
        return cast(Answer, self)

    def close(self) -> None:
        pass

    async def read_chunk(self) -> bytes | None:
        return self.chunks.pop(0) if self.chunks else None

    async def read(self) -> bytes:
        return b"".join(self.chunks)


class Caller:
    """Its request, and what it was answered."""

    def __init__(self, **fields: object) -> None:
        messages = [{"role": "user", "content": "hi"}]
        self.asked = {"model": MODEL, "messages": messages, "max_tokens": 5} | fields
        self.headers: dict[str, str] = {}
        self.status = 0
        self.got = b""

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        self.status, self.headers, self.got = status, dict(headers), body

    def response_stream(self, status: int, headers: Headers) -> Caller:
        self.response_bytes(status, headers, b"")
        return self

    async def send_bytes(self, data: bytes) -> None:
        self.got += data


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    ledger = await SqliteLedger.open(tmp_path / "ledger.db")
    await ledger.configure([ACCOUNT], time_zone="UTC", generation=1)
    yield ledger
    await ledger.close()


@pytest.fixture
def calls(ledger: Ledger, tmp_path: Path) -> Calls:
    (tmp_path / "openrouter").write_text(KEY)
    return Calls(ledger, Admission(ledger), Keys(tmp_path))


async def call(
    calls: Calls,
    provider: Provider,
    caller: Caller,
    status: int = 200,
    config: GatewayConfig = CONFIG,
) -> None:
    consumers = Consumers(config.accounts)
    upstreams = {"openrouter": cast(Upstream, provider)}
    routes = Routes(config, consumers, catalogues(config), upstreams)
    consumer = consumers.match("ns", "app", None)
    request, exchange = cast(Request, caller), cast(Exchange, caller)
    body = json.dumps(caller.asked).encode()
    await calls.serve(CHAT, routes, consumer, request, body, exchange, lambda _: None, call_story())
    assert caller.status == status
    assert provider.key == KEY


def at_host(host: str) -> GatewayConfig:
    return CONFIG.model_copy(update={"providers": (offer(MODEL, host=host).provider,)})


async def test_a_plain_answer_without_the_key(calls: Calls) -> None:
    document = json.dumps({"choices": [], "usage": USAGE, "note": KEY}).encode()
    caller = Caller()
    await call(calls, Provider("application/json", document), caller)
    assert json.loads(caller.got)["note"] == "[masked]"
    assert caller.headers["x-llmbudget-cost-usd"] == "0.000000005"


async def test_no_header_holds_the_key(calls: Calls) -> None:
    document = json.dumps({"choices": [], "usage": USAGE}).encode()
    caller = Caller()
    await call(calls, Provider(f"application/json; note={KEY}", document), caller)
    assert not [name for name, value in caller.headers.items() if KEY in value]


async def test_the_first_chunk_is_timed_from_when_the_call_was_sent(calls: Calls) -> None:
    usage = json.dumps({"choices": [], "usage": USAGE}).encode()
    provider = Provider("text/event-stream", b"data: " + usage + b"\n\ndata: [DONE]\n\n")
    metrics.CALLS.clear()
    began = time.monotonic()
    await call(calls, provider, Caller(stream=True))
    labels = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "openrouter",
        "gen_ai_request_model": MODEL,
        "budget": ACCOUNT.name,
    }
    seconds = [
        metrics.REGISTRY.get_sample_value(f"{name}_sum", labels) or 0
        for name in (
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "gen_ai_server_time_to_first_token_seconds",
        )
    ]
    assert 0 < seconds[0] < seconds[1] <= time.monotonic() - began


FILTERED = b'{"error": {"code": "content_filter", "message": "Filtered."}}'


@pytest.mark.parametrize(("host", "charged"), [("x.openai.azure.com", True), ("a.example", False)])
async def test_a_refusal_that_is_charged_goes_back_with_what_it_cost(
    calls: Calls, ledger: Ledger, host: str, charged: bool
) -> None:
    provider, caller = Provider("application/json", FILTERED), Caller()
    provider.status = 400
    await call(calls, provider, caller, status=400, config=at_host(host))
    assert caller.got == FILTERED
    spent = ledger.balance(ACCOUNT.name).spent
    assert bool(spent) is charged
    assert caller.headers["x-llmbudget-cost-usd"] == format_usd(spent)


@pytest.mark.parametrize(
    ("host", "status", "body", "spent"),
    [
        ("a.example", 503, b"upstream connect error or disconnect/reset before headers", None),
        ("a.example", 503, b'{"error": {"message": "overloaded"}}', 0),
        ("api.x.ai", 403, b'{"error": "Content violates usage guidelines."}', 50_000_000),
    ],
)
async def test_a_failure_is_charged_unless_it_is_certainly_free(
    calls: Calls, ledger: Ledger, host: str, status: int, body: bytes, spent: int | None
) -> None:
    provider = Provider("text/plain", body)
    provider.status = status
    with pytest.raises(Refusal) as failed:
        await call(calls, provider, Caller(), config=at_host(host))
    assert failed.value.status == 502
    balance = ledger.balance(ACCOUNT.name)
    assert balance.held == 0
    assert balance.spent == spent if spent is not None else balance.spent > 0


@pytest.mark.parametrize(
    ("host", "told", "spent"),
    [
        ("openrouter.ai", {"cost": 0.25}, 250_000_000),
        ("openrouter.ai", {"cost": 1e-9}, 5),
        ("api.x.ai", {"cost_in_usd_ticks": 70}, 7),
        ("us-east-1.api.x.ai", {"cost_in_usd_ticks": 70}, 7),
        ("a.example", {"cost": 0.25}, 5),
        ("a.example", {"cost": {"total": 1}}, 5),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_answer_says_that_it_costs_is_charged_where_it_is_more(
    calls: Calls, ledger: Ledger, host: str, told: dict[str, object], spent: int, stream: bool
) -> None:
    document = json.dumps({"choices": [], "usage": USAGE | told}).encode()
    provider = Provider("application/json", document)
    if stream:
        events = b"data: " + document + b"\n\ndata: [DONE]\n\n"
        provider = Provider("text/event-stream", events)
    await call(calls, provider, Caller(stream=stream), config=at_host(host))
    assert ledger.balance(ACCOUNT.name).spent == spent, "beyond the hold too"


async def test_a_cost_that_is_none_is_no_measure(calls: Calls, ledger: Ledger) -> None:
    document = json.dumps({"choices": [], "usage": USAGE | {"cost": "much"}}).encode()
    caller = Caller()
    await call(
        calls, Provider("application/json", document), caller, config=at_host("openrouter.ai")
    )
    assert ledger.balance(ACCOUNT.name).spent > 5, "the hold"
