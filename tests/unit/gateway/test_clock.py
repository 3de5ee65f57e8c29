"""The ledger's clock: no wall clock that jumps turns a month."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from llmbudget.gateway.clock import TrustedClock

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Machine:
    """Its two clocks, set by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.wall = NOON

    def advance(self, **time: float) -> None:
        span = timedelta(**time)
        self.seconds += span.total_seconds()
        self.wall += span


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def clock(machine: Machine) -> TrustedClock:
    return TrustedClock(NOON, lambda: machine.seconds, lambda: machine.wall.timestamp())


def test_it_goes_on_by_the_steady_clock(clock: TrustedClock, machine: Machine) -> None:
    machine.advance(days=3)
    assert clock() == NOON + timedelta(days=3)
    assert not clock.wrong


def test_a_wall_clock_that_jumps_changes_nothing_and_denies(
    clock: TrustedClock, machine: Machine
) -> None:
    machine.wall = datetime(2099, 1, 1, tzinfo=UTC)
    assert clock() == NOON
    assert clock.wrong
    machine.wall = NOON
    assert not clock.wrong


def test_small_corrections_are_taken_over_at_once(clock: TrustedClock, machine: Machine) -> None:
    machine.advance(minutes=1)
    clock.take(NOON + timedelta(seconds=65))
    assert clock() == NOON + timedelta(seconds=65)
    assert not clock.wrong


def test_a_server_that_jumps_once_is_not_believed(clock: TrustedClock, machine: Machine) -> None:
    clock.take(NOON + timedelta(days=40))
    assert clock() == NOON
    assert clock.wrong
    machine.advance(minutes=1)
    clock.take(NOON + timedelta(minutes=1))
    assert not clock.wrong


def test_a_server_that_insists_is_believed(clock: TrustedClock, machine: Machine) -> None:
    for _ in range(3):
        assert clock() < NOON + timedelta(days=39)
        machine.advance(minutes=1)
        clock.take(machine.wall + timedelta(days=40))
    assert clock() == machine.wall + timedelta(days=40)
    assert clock.wrong, "until this machine agrees"
    machine.wall += timedelta(days=40)
    assert not clock.wrong


def test_a_server_whose_jumps_disagree_is_not_believed(clock: TrustedClock) -> None:
    for days in (40, 80, 120, 160):
        clock.take(NOON + timedelta(days=days))
    assert clock() == NOON
