"""Five gateways share a ledger in PostgreSQL, and their image is updated while applications call:
nobody is answered with an error, every call has its row, and the cap holds."""

from __future__ import annotations

import json
from decimal import Decimal

from tests.e2e.cluster.prepare import NEXT
from tests.e2e.database import LEDGER, start_database, write_ledger_secret
from tests.e2e.tenant import GATEWAY, GATEWAYS, Tenant, outage, statuses


async def test_an_update_on_postgresql_is_seen_by_nobody(tenant: Tenant) -> None:
    await tenant.provide()
    await write_ledger_secret(tenant, await start_database(tenant))
    budget = tenant.budget("50.00", ledger=LEDGER)
    budget["spec"]["deployment"]["replicas"] = 5
    await tenant.spend_by(budget)
    await tenant.rolled_out(GATEWAY)
    assert len(await tenant.pods(GATEWAYS)) == 5
    await tenant.agent(WORDS=20, WORKERS=6, PAUSE=0.1)
    await tenant.spending_goes_on()
    before = await tenant.rows()

    await tenant.update_image(NEXT)
    await tenant.rolled_out(GATEWAY, 240)
    await tenant.spending_goes_on()
    assert (await tenant.rows())[: len(before)] == before
    lines = await tenant.said()
    print(f"\n{len(lines)} calls: {dict(statuses(lines))}; waited at most {outage(lines):.1f} s")
    assert set(statuses(lines)) == {200}

    cap = str(Decimal((await tenant.status())["spent"]) + Decimal("0.05"))
    patch = json.dumps({"spec": {"budget": {"monthlyCap": cap}}})
    await tenant.kubectl("patch", "llmbudget", "team-a", "--type=merge", "-p", patch)
    await tenant.until_said("the cap stops the application", status=402)
    answers = statuses(await tenant.stop_agent())
    assert set(answers) <= {200, 402, 429}, answers
    bill = await tenant.books_agree()
    assert bill["calls"] == answers[200]
    assert bill["nano"] <= Decimal(cap) * 10**9
