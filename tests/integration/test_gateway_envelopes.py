"""Envelopes through a real gateway: an agent sets money aside, its helpers spend it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tests.support.gateway_process import (
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

from llmbudget.api.money import parse_usd
from llmbudget.contract.config import AccountConfig, ConsumerConfig, EnvelopeLimits

pytestmark = pytest.mark.cluster


def agents(namespace: str, cap: int = USD, **changes: Any) -> AccountConfig:
    lead = ConsumerConfig(
        namespace=namespace,
        service_accounts=("researcher",),
        envelopes=EnvelopeLimits(maximum_nano=USD // 2, count=2),
    )
    helpers = ConsumerConfig(namespace=namespace, service_accounts=("default",), agent="helper")
    return account(namespace, cap, consumers=(lead, helpers), **changes)


@pytest.fixture
async def team(gateway: GatewayProcess, namespace: str, simulator: Simulator) -> GatewayProcess:
    providers = (provider("sim", simulator.port),)
    await gateway.configure(config(namespace, (agents(namespace),), providers, generation=2))
    await asyncio.sleep(0.5)
    return gateway


async def ask(
    gateway: GatewayProcess,
    method: str,
    path: str = "",
    document: Any = None,
    who: str = "researcher",
    **headers: str,
) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers["authorization"] = f"Bearer {await gateway.token(who)}"
    url = f"{gateway.url}/ledger/v1/envelopes{path}"
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.request(method, url, json=document, headers=headers)


async def test_a_task_has_its_own_money_and_gives_back_what_is_left(
    team: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    asked = {
        "cap_usd": "0.25",
        "lifetime_seconds": 600,
        "service_accounts": [f"{namespace}/default"],
        "task_id": "report-7",
    }
    opened = await ask(team, "POST", document=asked, idempotency_key="task-7")
    assert opened.status_code == 201, opened.text
    envelope = opened.json()
    assert (envelope["state"], envelope["left_usd"]) == ("open", "0.25")
    again = await ask(team, "POST", document=asked, idempotency_key="task-7")
    assert again.json() == envelope, "the same key opens no second one"

    plain = await post(team, body())
    cost = parse_usd(plain.headers["x-llmbudget-cost-usd"])
    left = parse_usd(plain.headers["x-llmbudget-remaining-usd"])
    assert left == USD - USD // 4 - cost, "what is set aside is not there for others"

    helper = await team.token("default")
    paid = await post(team, body(), helper, x_llmbudget_envelope=envelope["id"])
    assert paid.status_code == 200, paid.text
    assert parse_usd(paid.headers["x-llmbudget-remaining-usd"]) == USD // 4 - cost
    row = (await rows(team))[-1]
    assert (row.task_id, row.agent, row.cost) == ("report-7", "helper", cost)

    shown = (await ask(team, "GET", f"/{envelope['id']}", who="default")).json()
    assert (parse_usd(shown["spent_usd"]), shown["held_usd"]) == (cost, "0.00")
    metrics = await team.scrape()
    assert f'llmbudget_envelopes{{budget="{namespace}/team-a"}} 1.0' in metrics
    assert envelope["id"] not in metrics

    refused = await ask(team, "DELETE", f"/{envelope['id']}", who="default")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_envelope")
    closed = await ask(team, "DELETE", f"/{envelope['id']}")
    assert (closed.status_code, closed.json()["state"]) == (200, "closed")
    assert (await ask(team, "POST", f"/{envelope['id']}/close")).json() == closed.json()
    after = await post(team, body(), helper, x_llmbudget_envelope=envelope["id"])
    assert (after.status_code, after.json()["error"]["code"]) == (403, "envelope_closed")
    last = await post(team, body())
    assert parse_usd(last.headers["x-llmbudget-remaining-usd"]) == USD - 3 * cost
    bill = await simulator.bill()
    assert (bill["calls"], int(bill["nano"])) == (3, 3 * cost)


async def test_a_call_never_takes_more_than_its_envelope_has(
    team: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    envelope = (await ask(team, "POST", document={"cap_usd": "0.001"})).json()
    token = await team.token()
    answers = await asyncio.gather(
        *(post(team, body(), token, x_llmbudget_envelope=envelope["id"]) for _ in range(200))
    )
    assert {answer.status_code for answer in answers} == {200, 402}
    error = next(a for a in answers if a.status_code == 402).json()["error"]
    assert (error["type"], error["envelope"]) == ("insufficient_quota", envelope["id"])
    assert "Open another one, or call without it." in error["message"]
    bill = int((await simulator.bill())["nano"])
    assert 700_000 < bill <= 1_000_000
    shown = (await ask(team, "GET", f"/{envelope['id']}")).json()
    assert (parse_usd(shown["spent_usd"]), shown["held_usd"]) == (bill, "0.00")


async def test_envelopes_that_are_refused(
    team: GatewayProcess, namespace: str, simulator: Simulator
) -> None:
    cases: list[tuple[Any, str, int, str]] = [
        ({"cap_usd": "0.1"}, "default", 403, "no envelopes"),
        ({"cap_usd": "0.50000001"}, "researcher", 403, "may set aside 0.50 USD more"),
        ({"cap_usd": "0"}, "researcher", 400, "cap_usd"),
        ({"cap_usd": "-1"}, "researcher", 400, "cap_usd"),
        ({"cap_usd": 1}, "researcher", 400, "cap_usd"),
        ({}, "researcher", 400, "cap_usd"),
        ({"cap_usd": "0.1", "amount": 1}, "researcher", 400, "lifetime_seconds"),
        ({"cap_usd": "0.1", "lifetime_seconds": 0}, "researcher", 400, "lifetime_seconds"),
        ({"cap_usd": "0.1", "service_accounts": ["x"]}, "researcher", 400, "NAMESPACE/NAME"),
        (
            {"cap_usd": "0.1", "service_accounts": [f"{namespace}/stranger"]},
            "researcher",
            400,
            "stranger",
        ),
        ([], "researcher", 400, "no JSON object"),
    ]
    for document, who, status, says in cases:
        answer = await ask(team, "POST", document=document, who=who)
        assert answer.status_code == status, (document, answer.text)
        assert says in answer.json()["error"]["message"], answer.text
    poor = agents(namespace, USD // 10)
    providers = (provider("sim", simulator.port),)
    await team.configure(config(namespace, (poor,), providers, generation=3))
    await asyncio.sleep(0.5)
    larger = await ask(team, "POST", document={"cap_usd": "0.11"})
    assert larger.status_code == 402, "larger than its budget"
    assert larger.json()["error"]["left_usd"] == "0.10"


async def test_an_envelope_is_nobody_elses(team: GatewayProcess) -> None:
    envelope = (await ask(team, "POST", document={"cap_usd": "0.1"})).json()
    other = await team.token("default")
    for name in (envelope["id"], "env-0", "x" * 300):
        answer = await post(team, body(), other, x_llmbudget_envelope=name)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "no_envelope")
    assert (await ask(team, "GET", f"/{envelope['id']}", who="default")).status_code == 403
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"{team.url}/ledger/v1/envelopes"
        assert (await client.post(url, json={"cap_usd": "0.1"})).status_code == 401
        assert (await client.get(f"{url}/{envelope['id']}")).status_code == 401


async def test_a_killed_gateway_keeps_its_envelopes(team: GatewayProcess) -> None:
    asked = {"cap_usd": "0.2"}
    envelope = (await ask(team, "POST", document=asked, idempotency_key="k")).json()
    paid = await post(team, body(), x_llmbudget_envelope=envelope["id"])
    spent = paid.headers["x-llmbudget-cost-usd"]
    async with asyncio.timeout(30):
        # Answers leave before what they cost is written.
        while (await ask(team, "GET", f"/{envelope['id']}")).json()["spent_usd"] != spent:
            await asyncio.sleep(0.05)
    team.kill()
    team.start()
    await team.ready()
    again = (await ask(team, "POST", document=asked, idempotency_key="k")).json()
    assert again["id"] == envelope["id"]
    assert again["spent_usd"] == spent
    assert (await ask(team, "DELETE", f"/{envelope['id']}")).json()["state"] == "closed"
