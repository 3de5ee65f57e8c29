"""The gateway's image is updated while applications call.

On SQLite one pod owns the file: the old one ends before the new one starts, and the outage is
measured. Callers that retry, as the official packages do, see none of it.
"""

from __future__ import annotations

from tests.e2e.cluster.prepare import NEXT
from tests.e2e.tenant import GATEWAY, Tenant, outage, statuses


async def test_an_update_on_sqlite_is_a_short_outage(tenant: Tenant) -> None:
    await tenant.provide()
    await tenant.spend_by(tenant.budget("50.00"))
    await tenant.agent(WORDS=20, WORKERS=4, PAUSE=0.1)
    await tenant.spending_goes_on()
    before = await tenant.rows()

    await tenant.update_image(NEXT)
    await tenant.rolled_out(GATEWAY)
    await tenant.spending_goes_on()
    assert (await tenant.rows())[: len(before)] == before

    lines = await tenant.stop_agent()
    answers = statuses(lines)
    print(f"\n{sum(answers.values())} calls: {dict(answers)}; away for {outage(lines):.1f} s")
    # The old pod lets its calls end; then there is nobody to connect to.
    assert set(answers) <= {200, 0, 503}, answers
    bill = await tenant.books_agree()
    assert bill["calls"] == answers[200], "no call that was billed went unanswered"
