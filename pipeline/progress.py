"""How far a run is: counters that actors report, and what people are shown of them.

Reports are cheap: an actor sends its running totals about once a second to one small Ray actor,
the board, and waits for no answer; the driver reads the board.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from admg.request import Completion

Phase = Literal["checking", "starting", "decoding", "finishing"]


@dataclass(frozen=True, slots=True)
class Counters:
    """Running totals of one actor, or of several added up."""

    rows: int = 0
    rows_error: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_spec_steps: int = 0
    spec_tokens: float = 0.0
    speedup_seconds: float = 0.0
    timed_seconds: float = 0.0
    audit_tokens: int = 0

    def __add__(self, other: Counters) -> Counters:
        names = [f.name for f in fields(Counters)]
        return Counters(*(getattr(self, n) + getattr(other, n) for n in names))

    def plus_errors(self, rows: int) -> Counters:
        """With error rows that the engine never saw."""
        return replace(self, rows=self.rows + rows, rows_error=self.rows_error + rows)

    def plus(self, completion: Completion) -> Counters:
        """With one finished sequence."""
        s = completion.stats
        timed = s.decode_seconds if s.speedup is not None else 0.0
        return Counters(
            self.rows + 1,
            self.rows_error + (completion.finish_reason == "error"),
            self.prompt_tokens + s.prompt_tokens,
            self.completion_tokens + s.completion_tokens,
            self.num_spec_steps + s.num_spec_steps,
            self.spec_tokens + (s.mean_acceptance_length or 0.0) * s.num_spec_steps,
            self.speedup_seconds + (s.speedup or 0.0) * timed,
            self.timed_seconds + timed,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run shows of itself.

    Rows committed by earlier runs count as done; tokens, `tokens_per_second` and the ratios are
    this run's, and the clock of `tokens_per_second` starts when the first model is loaded.
    `seconds` is the time since the run began.
    """

    rows_total: int = 0
    rows_done: int = 0
    rows_error: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    mean_acceptance_length: float | None = None
    speedup: float | None = None
    actors: int = 0
    phase: Phase = "checking"


def ratio(numerator: float, denominator: float) -> float | None:
    """A quotient, or None where there is nothing to divide by."""
    return numerator / denominator if denominator else None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the board knows: actors that reported, their sum, seconds since the first report."""

    actors: int
    counters: Counters
    seconds: float


class Board:
    """The latest counters of every actor, by name. Lives in a Ray actor."""

    def __init__(self) -> None:
        self._counters: dict[str, Counters] = {}
        self._first = 0.0

    def report(self, name: str, counters: Counters) -> None:
        """Replace what this process said before; it is called actor/process."""
        if not self._counters:
            self._first = time.monotonic()
        self._counters[name] = counters

    def read(self) -> Reading:
        """Everything at once."""
        seconds = time.monotonic() - self._first if self._counters else 0.0
        total = sum(self._counters.values(), Counters())
        return Reading(len({name.split("/")[0] for name in self._counters}), total, seconds)


class Tracker:
    """Turns counters into `Progress` and hands it to a callback, from one thread at a time.

    `decoding_seconds` is the time from the first loaded model to the last reading.
    """

    def __init__(self, callback: Callable[[Progress], None] | None) -> None:
        self._callback = callback
        self._began = time.monotonic()
        self.decoding_seconds = 0.0
        self._lock = threading.Lock()
        self._latest = Progress()

    def phase(self, phase: Phase, **known: Any) -> None:
        """Enter a phase, with whatever else is known by now."""
        with self._lock:
            self._show(replace(self._latest, phase=phase, **known))

    def update(self, reading: Reading, reused: int) -> None:
        """Take new counters in; the first report says that a model is loaded."""
        if not reading.actors:
            return
        with self._lock:
            self.decoding_seconds = reading.seconds
            counters = reading.counters
            speed = ratio(counters.completion_tokens, reading.seconds) or 0.0
            self._show(
                replace(
                    self._latest,
                    phase="decoding",
                    actors=reading.actors,
                    # Rows that an engine took down with it are counted again.
                    rows_done=min(reused + counters.rows, self._latest.rows_total),
                    rows_error=counters.rows_error,
                    prompt_tokens=counters.prompt_tokens,
                    completion_tokens=counters.completion_tokens,
                    tokens_per_second=speed,
                    mean_acceptance_length=ratio(counters.spec_tokens, counters.num_spec_steps),
                    speedup=ratio(counters.speedup_seconds, counters.timed_seconds),
                )
            )

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def _show(self, progress: Progress) -> None:
        self._latest = replace(progress, seconds=self.seconds)
        if self._callback is not None:
            self._callback(self._latest)


class Watch:
    """Reads the board about twice a second in a thread, while a run decodes."""

    def __init__(
        self,
        board: Any,
        tracker: Tracker,
        reused: int,
        tell: Callable[[Reading], None] | None = None,
        every: float = 0.5,
    ) -> None:
        self._board = board
        self._tracker = tracker
        self._reused = reused
        self._tell = tell
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="progress", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _poll(self) -> None:
        import ray

        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._every)  # a last reading follows the end
            # The board may die with its node; progress is not worth a run.
            with suppress(ray.exceptions.RayError):
                reading = ray.get(self._board.read.remote(), timeout=5)
                self._tracker.update(reading, self._reused)
                if self._tell is not None:
                    self._tell(reading)
