"""What an engine's loop has done, told about once a second from a thread of its own.

A thread of its own, for a round may take long (the first one warms up and prefills a whole batch),
and tokens count as they are made, not when their sequence ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace

from admg.request import Completion
from admg.stats import EngineCounters
from pipeline.counters import Counters
from pipeline.factory import EngineLike
from pipeline.metrics import Sample, metrics_of_this_actor

Report = Callable[[Counters], None]
REPORT_SECONDS = 1.0
# What an engine holds now, and not what it has done.
_HELD = ("num_running", "num_waiting", "num_slots", "num_slots_used")
_DONE = tuple(f.name for f in fields(EngineCounters) if f.name not in _HELD)

_log = logging.getLogger(__name__)


class Reporter:
    """Counts for one engine.

    Args:
        report: called from the thread with what has been done so far; None reports nothing.
    """

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._counters = Counters()
        self._drafted: Counter[str] = Counter()
        self._accepted = 0
        self._rounds: list[float] = []
        # What was decoded a second time is no progress; while it is, the counters stand still.
        self._repeated = EngineCounters()
        self._held_back: EngineCounters | None = None
        self._stop = threading.Event()

    def start(self, engine: EngineLike) -> None:
        """The engine is there: say so, and go on reporting."""
        if self._report is not None:
            threading.Thread(target=self._run, args=(engine,), name="reports", daemon=True).start()

    def stop(self) -> None:
        """The engine is dead: no report follows."""
        self._stop.set()

    def count_errors(self, codes: Sequence[str]) -> None:
        """Count rows that never reach the engine, one for each code."""
        with self._lock:
            self._counters = self._counters.plus_errors(codes)

    def count(self, completion: Completion) -> None:
        """Count a finished sequence."""
        with self._lock:
            self._counters = self._counters.plus(completion)
            self._drafted.update(completion.stats.drafter_tokens)
            self._accepted += completion.stats.num_accepted_draft_tokens

    @contextmanager
    def round(self, engine: EngineLike, repeats: bool) -> Iterator[None]:
        """Time a round, in which things may be decoded that were decoded before."""
        if repeats:
            self._held_back = engine.counters
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        with self._lock:
            self._rounds.append(seconds)
            if self._held_back is not None:
                again = _minus(engine.counters, self._held_back)
                self._repeated = _plus(self._repeated, again)
                self._held_back = None

    def _run(self, engine: EngineLike) -> None:
        metrics, known = None, False
        while not self._stop.is_set():
            sample = self._sample(engine)
            if self._report is not None:
                self._report(sample.counters)
            try:
                metrics, known = metrics if known else metrics_of_this_actor(), True
                if metrics is not None:
                    metrics.record(sample)
            except Exception:  # whatever Ray's exporter has, reports are signs of life
                _log.warning("metrics are given up", exc_info=True)
                metrics = None
            self._stop.wait(REPORT_SECONDS)

    def _sample(self, engine: EngineLike) -> Sample:
        with self._lock:
            now, own = engine.counters, self._counters
            rounds, self._rounds = self._rounds, []
            done = _minus(self._held_back or now, self._repeated)
            drafted, accepted = dict(self._drafted), self._accepted
            again = self._repeated.completion_tokens
        # The engine knows of sequences that are not finished, too, where it counts such things.
        passes = max(0, done.num_spec_steps - own.num_spec_steps)
        accepted = max(0, done.num_accepted_draft_tokens - accepted) if passes else 0
        counters = replace(
            own,
            prompt_tokens=max(own.prompt_tokens, done.prompt_tokens),
            completion_tokens=max(own.completion_tokens, done.completion_tokens),
            num_spec_steps=own.num_spec_steps + passes,
            spec_tokens=own.spec_tokens + passes + accepted,
            audit_tokens=again,  # no progress, but a sign of life
        )
        held = {name: getattr(now, name) for name in _HELD}
        return Sample(counters, replace(done, **held), drafted, rounds)


def _minus(a: EngineCounters, b: EngineCounters) -> EngineCounters:
    return EngineCounters(**{name: getattr(a, name) - getattr(b, name) for name in _DONE})


def _plus(a: EngineCounters, b: EngineCounters) -> EngineCounters:
    return EngineCounters(**{name: getattr(a, name) + getattr(b, name) for name in _DONE})
