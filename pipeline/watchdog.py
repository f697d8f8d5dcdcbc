"""A thread beside the engine's that notices when nothing moves any more, or one row never ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Watched:
    """A row in the engine: since when, the seconds that it may take, and those that it may wait.

    A row whose places are taken when it comes waits for others before its own time begins.
    """

    key: str
    since: float
    seconds: float = 0.0
    waits: float = 0.0


def overdue(rows: Sequence[Watched], moved: float, now: float) -> tuple[str, ...]:
    """The rows that are over their deadline: one by its own clock, all where nothing moves.

    `moved` is when the engine last did anything: took a row, made a token, finished a row.
    """
    if not rows:
        return ()
    if now - moved > max(row.seconds for row in rows):
        return tuple(row.key for row in rows)
    return tuple(row.key for row in rows if now - row.since > row.seconds + row.waits)


def watch(check: Callable[[], bool], every: float) -> None:
    """Call `check` in a thread of its own until it returns False."""

    def run() -> None:
        while check():
            time.sleep(every)

    threading.Thread(target=run, name="watchdog", daemon=True).start()
