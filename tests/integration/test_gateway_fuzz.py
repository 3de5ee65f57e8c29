"""Requests made from /openapi.json, valid and not: no fault of the gateway's, and nothing goes
upstream but with a hold.

`make fuzz` makes ten thousand of them, by two processes; by default there are fewer. A body made
from the document alone is seldom one that a model could answer, so most are such a one with some
fields of the document's.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any, Final

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from tests.support.gateway_process import (
    USD,
    GatewayProcess,
    Simulator,
    account,
    config,
    media_models,
    model,
    provider,
    rows,
)

from llmbudget.api.credentials import KeyHeader
from llmbudget.api.provider import Protocol

pytestmark = pytest.mark.cluster
CASES: Final = int(os.environ.get("FUZZ_CASES", "2000"))
"""Requests in all, of either mode half. One takes some 13 ms, most of which makes it."""
_MESSAGES: Final = [{"role": "user", "content": "say 3 words"}]
CHOOSING: Final = ("x-llmbudget-budget", "x-llmbudget-envelope")
"""Headers that lead nowhere unless somebody knows what to write."""
GOOD: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"model": "small", "messages": _MESSAGES, "max_tokens": 9},
    "/v1/responses": {"model": "small", "input": "say 3 words", "max_output_tokens": 9},
    "/v1/completions": {"model": "small", "prompt": "say 3 words", "max_tokens": 9},
    "/v1/embeddings": {"model": "small", "input": "x"},
    "/v1/moderations": {"model": "free", "input": "x"},
    "/v1/audio/speech": {"model": "tts", "input": "x", "voice": "alloy"},
    "/v1/images/generations": {"model": "draw", "prompt": "x"},
    "/v1/messages": {"model": "claude/small", "messages": _MESSAGES, "max_tokens": 9},
    "/v1/messages/count_tokens": {"model": "claude/small", "messages": _MESSAGES},
}
"""Bodies that are answered."""
_ENDLESS: Final = "/ledger/v1/balances"
_UNHURRIED: Final = settings(
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Fuzzer:
    """Sends cases, and compares what the provider has seen with what the gateway says."""

    def __init__(self, url: str, bill: str, token: str) -> None:
        self._url = url
        self._bill = bill
        self._session = requests.Session()
        self._session.trust_env = False
        self._token = token
        self._upstream = self._seen()
        self._paid = 0
        """Answers that name a row of the ledger, since the provider was last asked."""
        self.answers: Counter[tuple[str, str, int]] = Counter()

    def _seen(self) -> int:
        return int(self._session.get(self._bill).json()["requests"])

    def run(self, operation: Any, mode: GenerationMode, cases: int) -> None:
        """Send so many cases of an operation."""

        good = GOOD.get(operation.path, {})

        @settings(_UNHURRIED, max_examples=cases)
        @given(operation.as_strategy(generation_mode=mode), st.integers(0, 7), st.data())
        def send(case: Any, kind: int, data: st.DataObject) -> None:
            # The smaller numbers are the more frequent ones.
            if kind < 6:
                for name in CHOOSING:
                    case.headers.pop(name, None)
            if kind < 6 and good and isinstance(case.body, dict):
                names = st.lists(st.sampled_from(sorted(case.body)), max_size=2, unique=True)
                some = data.draw(names) if case.body else []
                case.body = good | {name: case.body[name] for name in some}
            self._send(operation, mode, case, identified=kind < 7)

        send()
        self._compare(operation)

    def _compare(self, operation: Any) -> None:
        """Nothing has gone upstream but what has a row: there is one attempt a call."""
        seen = self._seen()
        assert seen - self._upstream == self._paid, operation.path
        self._upstream, self._paid = seen, 0

    def _send(self, operation: Any, mode: GenerationMode, case: Any, *, identified: bool) -> None:
        case.headers.pop("Authorization", None)
        case.headers.pop("x-api-key", None)
        if identified:
            case.headers["authorization"] = f"Bearer {self._token}"
        try:
            answer = case.call(base_url=self._url, session=self._session, timeout=20)
        except (requests.exceptions.InvalidHeader, UnicodeError):
            return  # nothing that a client can send
        self.answers[operation.path, mode.value, answer.status_code] += 1
        assert answer.status_code < 500, (case.as_curl_command(), answer.content)
        self._paid += "x-llmbudget-entry-id" in answer.headers
        assert "x-request-id" in answer.headers or answer.status_code == 400


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
async def test_no_request_is_answered_with_a_fault_or_goes_upstream_unpaid(
    gateway: GatewayProcess, simulator: Simulator, namespace: str, mode: GenerationMode
) -> None:
    spoken = {"protocol": Protocol.ANTHROPIC, "key_header": KeyHeader.X_API_KEY}
    models = (model("small", "small"), model("free", "free"), *media_models())
    providers = (
        provider("sim", simulator.port, models=models),
        provider("claude", simulator.port, **spoken),
    )
    mine = account(namespace, 1000 * USD, providers=("sim", "claude"))
    await gateway.configure(config(namespace, (mine,), providers, generation=2))
    await asyncio.sleep(0.5)
    token = await gateway.token()
    async with httpx.AsyncClient(trust_env=False) as client:
        document = (await client.get(f"{gateway.url}/openapi.json")).json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [each.ok() for each in schema.get_all_operations()]
    operations = [each for each in operations if each.path != _ENDLESS]
    fuzzer = Fuzzer(gateway.url, f"http://127.0.0.1:{simulator.port}/bill", token)
    # What has no body and no parameters has few ways to be asked, and none to be asked wrongly.
    many = [each for each in operations if each.method != "get"]
    for operation in many:
        await asyncio.to_thread(fuzzer.run, operation, mode, -(-CASES // (2 * len(many))))
    for operation in operations if mode is GenerationMode.POSITIVE else ():
        if operation not in many:
            await asyncio.to_thread(fuzzer.run, operation, mode, 20)
    statuses = Counter(status for (_, _, status) in fuzzer.answers.elements())
    print(mode.value, sum(statuses.values()), dict(statuses))
    assert sum(statuses.values()) >= CASES // 2
    assert {200, 400, 401} <= set(statuses)
    entries, bill = await rows(gateway), await simulator.bill()
    assert sum(entry.cost for entry in entries) == bill["nano"]
