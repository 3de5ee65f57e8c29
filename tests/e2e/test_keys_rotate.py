"""A provider's key is replaced while applications call: in the order that a provider's console asks
for nobody notices; after one that was revoked too early the next is enough. No pod restarts."""

from __future__ import annotations

from tests.e2e.tenant import GATEWAY, GATEWAYS, KEY, Tenant, statuses, until

SECOND = "sk-e2e-second"
THIRD = "sk-e2e-third"


async def test_a_key_is_replaced_under_load(tenant: Tenant) -> None:
    await tenant.provide()
    await tenant.spend_by(tenant.budget("50.00"))
    await tenant.agent(WORDS=20, WORKERS=4, PAUSE=0.1)
    await tenant.spending_goes_on()
    [gateway] = await tenant.pods(GATEWAYS)

    await tenant.accept_keys(KEY, SECOND)
    await tenant.write_key(SECOND)
    await tenant.accept_keys(SECOND)
    await tenant.spending_goes_on()
    assert set(statuses(await tenant.said())) == {200}

    await tenant.accept_keys(THIRD)

    async def refused() -> bool:
        return set(statuses(await tenant.said())) != {200}

    await until("the revoked key is refused", refused, 30)
    await tenant.write_key(THIRD)
    await tenant.spending_goes_on()

    [same] = await tenant.pods(GATEWAYS)
    assert same["metadata"]["uid"] == gateway["metadata"]["uid"]
    assert same["status"]["containerStatuses"][0]["restartCount"] == 0
    answers = statuses(await tenant.stop_agent())
    assert set(answers) == {200, 502}, answers
    bill = await tenant.books_agree()
    assert bill["calls"] == answers[200]
    logs = await tenant.kubectl("logs", f"deployment/{GATEWAY}", "--tail=-1")
    assert not any(key in logs for key in (KEY, SECOND, THIRD))
