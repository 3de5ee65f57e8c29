"""A period is a calendar month in a time zone."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest

from llmbudget.decide.periods import months_before, period_at, period_named


@pytest.mark.parametrize(
    ("instant", "zone", "name"),
    [
        (datetime(2026, 11, 30, 23, 59, 59, 999999, tzinfo=UTC), "UTC", "2026-11"),
        (datetime(2026, 12, 1, tzinfo=UTC), "UTC", "2026-12"),
        (datetime(2026, 12, 1, 4, 59, tzinfo=UTC), "America/New_York", "2026-11"),
        (datetime(2026, 12, 1, 5, 0, tzinfo=UTC), "America/New_York", "2026-12"),
        (datetime(2026, 11, 30, 11, 0, tzinfo=UTC), "Pacific/Auckland", "2026-12"),
        (datetime(2026, 12, 1, 1, 0, tzinfo=timezone(timedelta(hours=2))), "UTC", "2026-11"),
    ],
)
def test_month_of_an_instant(instant, zone, name):
    assert period_at(instant, zone).name == name


def test_ends_where_the_next_begins_across_years_and_clock_changes():
    for zone in ("UTC", "America/New_York", "Pacific/Auckland", "Africa/Casablanca"):
        for name, after in (("2026-12", "2027-01"), ("2026-03", "2026-04"), ("2026-10", "2026-11")):
            period = period_named(name, zone)
            assert period.end == period_named(after, zone).start
            assert period_at(period.start, zone) == period
            assert period_at(period.end - timedelta(microseconds=1), zone) == period
            assert period.start.tzinfo == ZoneInfo(zone)


def test_unknown_zone():
    with pytest.raises(ZoneInfoNotFoundError):
        period_at(datetime(2026, 1, 1, tzinfo=UTC), "Mars/Olympus")


@pytest.mark.parametrize(
    ("name", "months", "expected"),
    [
        ("2026-11", 0, "2026-11"),
        ("2026-11", 10, "2026-01"),
        ("2026-11", 11, "2025-12"),
        ("2026-01", 1, "2025-12"),
        ("2026-11", 24, "2024-11"),
    ],
)
def test_months_before(name: str, months: int, expected: str) -> None:
    assert months_before(name, months) == expected
