"""The promises, in runs that a seed decides; more of them by `make simulate`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from tests.simulation.__main__ import run
from tests.simulation.database import Broken

from llmbudget.api.money import Nano
from llmbudget.decide.cost import Usage
from llmbudget.gateway.attempt import Attempt
from llmbudget.ledger.book import Book
from llmbudget.ledger.interface import Entry, Outcome
from llmbudget.ledger.records import Account, OpenHold

SEEDS = range(1, 41)


def test_the_promises_hold() -> None:
    reports = [run(seed) for seed in SEEDS]
    assert sum(report.answers["200"] for report in reports) > 1000
    assert sum(report.answers["402"] for report in reports) > 100
    assert all(report.charged >= report.billed > 0 for report in reports)


def test_a_seed_tells_the_same_story_in_another_process() -> None:
    def story(hash_seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "7", "--trace"],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Warning" not in done.stderr, "what was killed is buried without a word"
        return done.stdout

    first = story("1")
    assert first.count("\n") > 100
    assert story("2") == first


def breaks() -> str:
    """Run seeds until one breaks a promise; say which."""
    for seed in SEEDS:
        try:
            run(seed)
        except Broken as broken:
            return str(broken)
    raise AssertionError("nothing noticed")


def test_a_refund_of_what_nobody_knows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    charge = Attempt.charge

    async def refund(self: Attempt, usage: Usage | None, charged: Nano) -> None:
        if usage is not None:
            await charge(self, usage, charged)
        else:
            await self.held.release()

    monkeypatch.setattr(Attempt, "charge", refund)
    assert "and released" in breaks()


def test_holds_of_the_dead_that_are_given_back_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sweep(self: Book, orphans: Sequence[OpenHold]) -> None:
        for hold in orphans:
            self.release(hold.id)

    monkeypatch.setattr(Book, "sweep", sweep)
    assert "and released" in breaks()


def test_a_check_without_other_calls_holds_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = Book._fits

    def blind(self: Book, account: Account, amount: int, *, held: bool = True) -> bool:
        return fits(self, account, amount, held=False)

    monkeypatch.setattr(Book, "_fits", blind)
    assert "I1" in breaks()


def test_a_refusal_while_there_is_room_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = Book._fits

    def mean(self: Book, account: Account, amount: int, *, held: bool = True) -> bool:
        return fits(self, account, 2 * amount, held=held)

    monkeypatch.setattr(Book, "_fits", mean)
    assert "402 though" in breaks()


def test_a_row_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Book._write

    def forgetful(self: Book, hold: OpenHold, *others: Any) -> Entry:
        entry = write(self, hold, *others)
        if entry.outcome is Outcome.UNKNOWN:
            del self.changes.entries[hold.id]
        return entry

    monkeypatch.setattr(Book, "_write", forgetful)
    assert "has no row" in breaks()
