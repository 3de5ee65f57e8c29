"""Which month an instant belongs to, in a budget's time zone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True)
class Period:
    """A calendar month: from `start` (inclusive) to `end` (exclusive), both in its time zone."""

    name: str
    """Such as 2026-11."""
    start: datetime
    end: datetime


def period_at(instant: datetime, time_zone: str) -> Period:
    """Find the month that an instant (with any UTC offset) belongs to in a time zone.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: there is no such time zone.
    """
    local = instant.astimezone(ZoneInfo(time_zone))
    return _month(local.year, local.month, time_zone)


def period_named(name: str, time_zone: str) -> Period:
    """Build the period of a name such as 2026-11."""
    year, month = name.split("-")
    return _month(int(year), int(month), time_zone)


def months_before(name: str, months: int) -> str:
    """Name the period that is some months before the one of a name."""
    year, month = name.split("-")
    index = int(year) * 12 + int(month) - 1 - months
    return f"{index // 12:04d}-{index % 12 + 1:02d}"


@lru_cache(maxsize=64)
def _month(year: int, month: int, time_zone: str) -> Period:
    zone = ZoneInfo(time_zone)
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return Period(
        name=f"{year:04d}-{month:02d}",
        start=datetime(year, month, 1, tzinfo=zone),
        end=datetime(*following, 1, tzinfo=zone),
    )
