"""Logical dates: which day's documents a tick of the clock is for.

A day belongs to a time zone and ends there at midnight; on two days of the year it has 23 or 25
hours. So dates are counted by the calendar of the zone and never by adding hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

PREFIX = "date="
STAGES = ".stages"
"""The folder, beside those of the dates, that holds their stages."""
_FOLDER = re.compile(r"date=(\d{4}-\d{2}-\d{2})")


def logical_date(now: datetime, zone: ZoneInfo, days_back: int = 1) -> date:
    """The date that a tick at `now` (with a time zone of any kind) is for.

    With `days_back` 1 it is the last day that has ended in `zone`.

    Raises:
        ValueError: `now` does not say in which time zone it is.
    """
    if now.tzinfo is None:
        raise ValueError("the time must have a time zone")
    return now.astimezone(zone).date() - timedelta(days=days_back)


def due(last: date, catch_up_days: int) -> Iterator[date]:
    """The dates that a tick looks at: the last one and those before it, oldest first."""
    for days in range(catch_up_days, -1, -1):
        yield last - timedelta(days=days)


def folder_of(day: date) -> str:
    """The folder's name: `date=2026-11-20`."""
    return f"{PREFIX}{day.isoformat()}"


def date_of(folder: str) -> date | None:
    """The date of a folder's name; None for any other name."""
    found = _FOLDER.fullmatch(folder)
    try:
        return None if found is None else date.fromisoformat(found[1])
    except ValueError:
        return None  # 2026-02-30


def parse_date(text: str) -> date:
    """A date as people write it on a command line.

    Raises:
        ValueError: it is none.
    """
    day = date_of(PREFIX + text)
    if day is None:
        raise ValueError(f"--date is {text!r}: it must be a date as 2026-11-20")
    return day
