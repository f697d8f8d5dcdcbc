"""How far a run is: what people are shown of the counters that actors report."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.counters import Counters, Reading

Phase = Literal["checking", "starting", "decoding", "finishing"]
_ROWS_FOR_A_PACE = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run shows of itself.

    Rows committed by earlier runs count as done; tokens, tokens per second (of completions, and of
    prompts), the ratios and the errors are this run's, and the clock of tokens per second starts
    when the first model is loaded. `errors_by_code` holds those whose code is known while the run
    works; in the end the errors are those of the whole output. `seconds` is the time since the run
    began, `eta_seconds` what is left of it at its pace so far (None: too early to say). `actors`
    have loaded a model, and `actors_alive` have reported in the last seconds.
    """

    rows_total: int = 0
    rows_done: int = 0
    rows_error: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    mean_acceptance_length: float | None = None
    speedup: float | None = None
    actors: int = 0
    actors_alive: int = 0
    errors_by_code: dict[str, int] = field(default_factory=dict)
    eta_seconds: float | None = None
    phase: Phase = "checking"


def ratio(numerator: float, denominator: float) -> float | None:
    """A quotient, or None where there is nothing to divide by."""
    return numerator / denominator if denominator else None


class Tracker:
    """Turns counters into `Progress` and hands it to callbacks, from one thread at a time.

    What a callback raises is logged once: progress is not worth a run.
    `decoding_seconds` is the time from the first loaded model to the last reading.
    """

    def __init__(self, callback: Callable[[Progress], None] | None) -> None:
        self._callbacks = [] if callback is None else [callback]
        self._began = time.monotonic()
        self.decoding_seconds = 0.0
        self._lock = threading.Lock()
        self._failed = False
        self._latest = Progress()
        self._reading = self._before = Reading(0, Counters(), 0.0)

    def listen(self, callback: Callable[[Progress], None]) -> None:
        """Tell one more, the latest at once."""
        with self._lock:
            self._callbacks.append(callback)
            callback(self._latest)

    def phase(self, phase: Phase, **known: Any) -> None:
        """Enter a phase, with whatever else is known by now."""
        with self._lock:
            self._show(replace(self._latest, phase=phase, eta_seconds=None, **known))

    def update(self, reading: Reading, reused: int) -> None:
        """Take new counters in; the first report says that a model is loaded."""
        if not reading.actors:
            return
        with self._lock:
            before = self._before
            counters = before.counters + reading.counters
            seconds = before.seconds + reading.seconds
            reading = self._reading = replace(reading, counters=counters, seconds=seconds)
            self.decoding_seconds = seconds
            # Rows that an engine took down with it are counted again.
            done = min(reused + counters.rows, self._latest.rows_total)
            self._show(
                replace(
                    self._latest,
                    phase="decoding",
                    actors=reading.actors,
                    actors_alive=reading.alive,
                    rows_done=done,
                    rows_error=counters.rows_error,
                    errors_by_code=counters.errors,
                    prompt_tokens=counters.prompt_tokens,
                    completion_tokens=counters.completion_tokens,
                    tokens_per_second=_rate(counters.completion_tokens, reading.seconds),
                    prompt_tokens_per_second=_rate(counters.prompt_tokens, reading.seconds),
                    mean_acceptance_length=ratio(counters.spec_tokens, counters.num_spec_steps),
                    speedup=ratio(counters.speedup_seconds, counters.timed_seconds),
                    eta_seconds=_seconds_left(reading, self._latest.rows_total - done),
                )
            )

    def keep(self) -> None:
        """Add to this what follows: it is started again, on what is left of the cluster."""
        with self._lock:
            self._before = self._reading

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def _show(self, progress: Progress) -> None:
        self._latest = replace(progress, seconds=self.seconds)
        for callback in self._callbacks:
            try:
                callback(self._latest)
            except Exception:  # as where a terminal is gone
                if not self._failed:
                    _log.warning("progress cannot be shown", exc_info=True)
                self._failed = True


def _rate(count: int, seconds: float) -> float:
    return ratio(count, seconds) or 0.0


def _seconds_left(reading: Reading, left: int) -> float | None:
    """At the pace of this run; rows committed by earlier runs cost nothing.

    Rows that are decoded together end together: the first few say nothing about the pace.
    """
    rows = reading.counters.rows
    return None if rows < _ROWS_FOR_A_PACE else reading.seconds / rows * left


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
        self._tracker.keep()

    def _poll(self) -> None:
        import ray

        stopped, began = False, math.inf
        while not stopped:
            stopped = self._stop.wait(self._every)  # a last reading follows the end
            # The board may die, and comes back empty until the actors have told it all again.
            with suppress(ray.exceptions.RayError):
                reading: Reading = ray.get(self._board.read.remote(), timeout=5)
                if reading.actors:
                    now = time.monotonic()
                    began = min(began, now - reading.seconds)
                    reading = replace(reading, seconds=now - began)
                if self._tell is not None:
                    self._tell(reading)
                self._tracker.update(reading, self._reused)
