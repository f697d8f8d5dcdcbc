"""The bound in time: of the whole, of its parts, and of every single request to a worker."""

from __future__ import annotations

import threading
import time
from typing import Any

from jobs.bench.process import Worker, WorkerError


class LeftOutError(RuntimeError):
    """Something was not measured; the message says why."""


class Clock:
    """Seconds that are left until `minutes` have passed, or a part of them."""

    def __init__(self, minutes: float) -> None:
        self._start, self._end = time.monotonic(), time.monotonic() + 60 * minutes

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds until the end; 0 once it is over."""
        return max(0.0, self._end - time.monotonic())

    def part(self, share: float) -> Clock:
        """A clock that ends when this share of what is left now has passed."""
        return Clock(share * self.left / 60)


def ask(worker: Worker, seconds: float, do: str, **fields: Any) -> Any:
    """A worker's answer; one that takes longer is ended, with all that it has started.

    Raises:
        LeftOutError: it took longer, it failed, or it died. The worker is of no use afterwards.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        worker.close(at_once=True)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        return worker.ask(do, **fields)
    except (WorkerError, ValueError) as error:  # reading from what was just closed is a ValueError
        if late.is_set():
            raise LeftOutError(f"it took longer than {seconds:.0f} s") from error
        worker.close(at_once=True)
        reason = str(error).removeprefix(f"{worker.name}: ").removeprefix("ValueError: ")
        raise LeftOutError(reason) from error
    finally:
        timer.cancel()
