"""How far a run is, and how long it will take: lines for people."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobs.console import duration

Say = Callable[[str], None]


class Progress:
    """Counts work (tokens to decode) as cells are finished.

    Args:
        say: gets one line for each cell.
        clock: seconds.
    """

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._ahead: dict[str, float] = {}
        self._done, self._seconds = 0.0, 0.0
        self._started: float | None = None

    def expect(self, name: str, work: float) -> None:
        """There will be this much work under this name."""
        self._ahead[name] = work

    def begin(self, name: str) -> None:
        """A cell starts."""
        self._started = self._clock()
        self._say(f"{name}{self._left()}")

    def end(self, name: str) -> float:
        """The cell has finished; its seconds."""
        assert self._started is not None
        seconds = self._clock() - self._started
        self._done += self._ahead.pop(name, 0.0)
        self._seconds += seconds
        return seconds

    def _left(self) -> str:
        count = len(self._ahead)
        if not self._done or not count:
            return f" ({count} cells left)" if count else ""
        left = sum(self._ahead.values()) * self._seconds / self._done
        return f" ({count} cells left, about {duration(left)})"
