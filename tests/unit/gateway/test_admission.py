"""Waiting for money: a turn is passed on whatever becomes of it, so that nobody waits in vain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmbudget.api.money import Nano
from llmbudget.contract.config import AccountConfig
from llmbudget.gateway import admission
from llmbudget.gateway.admission import Admission
from llmbudget.ledger.interface import BudgetExceeded, HoldRequest, Settlement
from llmbudget.ledger.sqlite import SqliteLedger

ACCOUNT = "ns/team"
CAP = 100
WAITERS = 20


@pytest.fixture
async def money(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Admission]:
    # Nobody is to be answered because the time is up.
    monkeypatch.setattr(admission, "WAIT_SECONDS", 3600.0)
    ledger = await SqliteLedger.open(tmp_path / "ledger.db")
    account = AccountConfig(name=ACCOUNT, cap_nano=CAP, providers=("p",))
    await ledger.configure([account], time_zone="UTC", generation=1)
    yield Admission(ledger)
    await ledger.close()


def request(number: int, amount: int = CAP) -> HoldRequest:
    return HoldRequest(
        id=str(number), account=ACCOUNT, amount=Nano(amount), provider="p", model="m"
    )


async def spend(money: Admission, number: int, amount: int, cost: int) -> bool:
    """Make one call; tell whether there was money for it, or would have been."""
    try:
        async with money.held(request(number, amount)) as held:
            await asyncio.sleep(0)
            await held.settle(Settlement(cost=Nano(cost)))
    except BudgetExceeded as error:
        return error.only_held
    return True


async def test_what_another_gateway_gives_back_is_found(money: Admission) -> None:
    other = Admission(money._ledger)
    async with other.held(request(1)) as held:
        waiting = asyncio.create_task(spend(money, 2, CAP, 1))
        await asyncio.sleep(0.05)
        await held.release()
        assert await asyncio.wait_for(waiting, 10)


async def outcomes(money: Admission, amount: int, cost: int) -> list[bool]:
    calls = (spend(money, number, amount, cost) for number in range(WAITERS))
    return await asyncio.wait_for(asyncio.gather(*calls), 60)


async def test_all_who_wait_learn_that_the_money_is_gone(money: Admission) -> None:
    assert sorted(await outcomes(money, CAP, CAP)) == [False] * (WAITERS - 1) + [True]


async def test_all_who_wait_get_what_others_give_back(money: Admission) -> None:
    assert await outcomes(money, CAP, 1) == [True] + [False] * (WAITERS - 1)


async def test_holds_that_turn_out_cheap_let_the_next_ones_through(money: Admission) -> None:
    assert await outcomes(money, CAP // 2, 1) == [True] * WAITERS


async def test_one_account_that_is_full_does_not_hold_up_another(
    money: Admission, tmp_path: Path
) -> None:
    ledger = await SqliteLedger.open(tmp_path / "two.db")
    accounts = [AccountConfig(name=name, cap_nano=CAP, providers=("p",)) for name in ("a", "b")]
    await ledger.configure(accounts, time_zone="UTC", generation=1)
    both = Admission(ledger)

    def ask(number: int, account: str) -> HoldRequest:
        return HoldRequest(
            id=str(number), account=account, amount=Nano(CAP), provider="p", model="m"
        )

    async def hold(number: int, account: str) -> None:
        async with both.held(ask(number, account)) as held:
            await held.release()

    async with both.held(ask(1, "a")) as of_a:
        async with both.held(ask(2, "b")) as of_b:
            waiting = [asyncio.create_task(hold(3 + n, "aab"[n])) for n in range(3)]
            await asyncio.sleep(0.05)
            await of_b.release()
        await asyncio.wait_for(waiting[2], 30)
        assert not waiting[0].done()
        assert not waiting[1].done()
        await of_a.release()
    await asyncio.wait_for(asyncio.gather(*waiting), 30)
    await ledger.close()
