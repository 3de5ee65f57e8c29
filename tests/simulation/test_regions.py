"""The promises of regions, in runs that a seed decides; more of them by `make simulate`."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
from tests.simulation.__main__ import run_regions
from tests.simulation.database import Broken

from llmbudget.decide.lending import Member
from llmbudget.ledger.interface import Entry, Envelope
from llmbudget.ledger.months import _Closing
from llmbudget.ledger.records import Account, Figures, Slice
from llmbudget.ledger.regions import shipping
from llmbudget.ledger.regions.authority import AuthorityBook
from llmbudget.ledger.regions.local import RegionalBook

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
SEEDS = range(1, 21)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()  # a region that is out of reach is what a run is about
    yield
    logging.disable(logging.NOTSET)
    gc.collect()  # here, where what killed blocks left behind is no warning


def test_the_promises_hold() -> None:
    reports = [run_regions(seed) for seed in SEEDS]
    assert sum(report.answers["sent"] for report in reports) > 1000
    assert sum(report.answers["BudgetExceeded"] for report in reports) > 100
    assert sum(report.answers["OutOfReach"] for report in reports) > 50
    assert all(report.charged > 0 for report in reports)
    events: Counter[str] = sum((report.events for report in reports), Counter())
    assert events["an envelope is opened"] > 100
    assert events["unused money is carried on"] > 10
    assert events["money of siblings is granted"] > 10


def test_a_seed_tells_the_same_story_again() -> None:
    first = run_regions(5)
    assert len(first.trace) > 100
    assert run_regions(5) == first


def breaks(seeds: Iterable[int] = SEEDS) -> str:
    """Run seeds until one breaks a promise; say which."""
    for seed in seeds:
        try:
            run_regions(seed)
        except Broken as broken:
            return str(broken)
    raise AssertionError("nothing noticed")


def test_slices_that_are_not_held_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuthorityBook, "_hold", lambda self, found, amount: None)
    assert "held" in breaks()


def test_slices_without_a_look_at_the_cap_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(self: AuthorityBook, path: Sequence[Account], amount: int) -> None:
        return

    monkeypatch.setattr(AuthorityBook, "_refuse_exceeding", fits)
    assert "I1" in breaks()


def test_an_envelopes_money_that_is_not_set_aside_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = AuthorityBook._draw

    def careless(self: AuthorityBook, envelope_id: str, **changed: int) -> int:
        return min(0, draw(self, envelope_id, **changed) * 2)

    monkeypatch.setattr(AuthorityBook, "_draw", careless)
    assert "lent" in breaks()


def test_calls_beyond_their_envelope_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Envelope, "left", property(lambda self: 0 if self.closed else self.cap))
    assert breaks()


def test_used_money_that_is_carried_on_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    closing = AuthorityBook._closing

    def generous(self: AuthorityBook, name: str) -> _Closing:
        account = self.accounts.get(name)
        unused = 0 if account is None else account.rollover
        return replace(closing(self, name), unused=unused)

    monkeypatch.setattr(AuthorityBook, "_closing", generous)
    assert "on, of" in breaks()


def test_money_that_is_lent_though_it_is_used_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Member, "_idle", lambda self, used: self.own - self.guaranteed)
    assert "siblings borrow" in breaks(range(1, 100))


def test_money_that_is_spent_after_it_was_given_back_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def own(self: RegionalBook, account: Account, figures: Figures) -> int:
        return figures.granted + figures.overage

    monkeypatch.setattr(RegionalBook, "_own", own)
    assert breaks()


def test_a_refund_of_what_a_silent_region_holds_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refund(self: AuthorityBook, holders: Iterable[str]) -> None:
        for holder in holders:
            for found in self._slices_of(holder):
                self._hold(found, -found.outstanding)
                self._store(replace(found, returned=found.returned + found.outstanding))
            known = self._holder(holder)
            if known is not None:
                self._know_holder(replace(known, lost=True))

    monkeypatch.setattr(AuthorityBook, "write_off", refund)
    assert "is not charged" in breaks()


def test_rows_that_are_charged_twice_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self: AuthorityBook, found: Slice, amount: int, **counted: int) -> int:
        changed = {name: getattr(found, name) + more for name, more in counted.items()}
        self._store(replace(found, **changed))
        return 0

    monkeypatch.setattr(AuthorityBook, "_draw_unknown", draw)
    assert breaks(range(1, 100))


def test_a_database_that_went_back_unseen_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "refuse_gone_back", lambda *_: None)
    assert breaks(range(1, 200))


def test_a_row_that_is_passed_over_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    book = AuthorityBook._book_checked

    def forgetful(self: AuthorityBook, holder: object, row: Entry, used: Collection[str]) -> None:
        if row.seq != 3:
            book(self, holder, row, used)  # type: ignore[arg-type]

    monkeypatch.setattr(AuthorityBook, "_book_checked", forgetful)
    assert "has no row" in breaks()
