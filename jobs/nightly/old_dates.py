"""The dates that a tick removes at its end. What goes wrong there is said, and fails no night."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from jobs.nightly.dates import STAGES
from jobs.nightly.night import Night
from jobs.nightly.retention import Old, remove, too_old
from jobs.nightly_words import say_beside
from pipeline.errors import PipelineError


def old_dates(night: Night, last: date, days: list[date]) -> list[Old]:
    """The dates that are to be removed; not those that this command is for."""
    keep = night.file.nightly.keep_days
    if keep is None:
        return []
    try:
        found = too_old(night.base.output, STAGES, last, keep)
    except (PipelineError, OSError) as error:
        say_beside(f"Warning: what is past nightly.keep_days cannot be found: {error}")
        return []
    return [old for old in found if old.date not in days]


def remove_dates(old: list[Old], say: Callable[[str], None]) -> list[str]:
    """Remove them; what was removed."""
    removed = []
    for one in old:
        try:
            gone = remove(one)
        except (PipelineError, OSError) as error:
            say_beside(f"Warning: date={one.date}: not removed: {error}")
            continue
        if gone:
            say(f"date={one.date}: removed, for it is past nightly.keep_days")
            removed.append(str(one.date))
        else:
            say_beside(f"date={one.date}: not removed, a run is at work on it")
    return removed
