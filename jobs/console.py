"""What a run shows while it works: a live line on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.progress import Progress

LOG_SECONDS = 10.0
_ROWS_FOR_A_PACE = 8
# Control characters, and those that turn the direction of what stands beside them.
_STEERING = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNTRUSTED = {code: " " for code in _STEERING if chr(code) not in "\n\t"}
_ESCAPED = {code: f"\\u{code:04x}" for code in _STEERING if code >= 127}


def printable(text: str) -> str:
    """Text from a model or a table without the control characters that steer a terminal."""
    return text.translate(_UNTRUSTED)


def json_text(value: Any) -> str:
    """JSON that can be shown as well: what steers a terminal is escaped, all else readable."""
    return json.dumps(value, ensure_ascii=False, default=str).translate(_ESCAPED)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def progress_line(progress: Progress, seconds_left: float | None = None) -> str:
    """One line: phase, rows, tokens per second, acceptance, speedup, time left."""
    if progress.phase in ("checking", "starting"):
        return {"checking": "checking the input", "starting": "loading the model"}[progress.phase]
    parts = [f"{progress.phase} {progress.rows_done}/{progress.rows_total} rows"]
    if progress.rows_error:
        parts.append(f"{progress.rows_error} error rows")
    parts.append(f"{progress.tokens_per_second:.1f} tokens/s")
    if progress.mean_acceptance_length is not None:
        parts.append(f"{progress.mean_acceptance_length:.2f} tokens per target pass")
    if progress.speedup is not None:
        parts.append(f"speedup {progress.speedup:.2f}")
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    return " | ".join(parts)


class Console:
    """Shows `Progress` values on stderr: a live bar on a terminal, log lines otherwise.

    Use as a context manager and hand `update` to the run. `last` is the latest value seen.
    """

    def __init__(
        self, *, terminal: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.last: Progress | None = None
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock = clock
        self._logged_at = -LOG_SECONDS
        self._phase = ""
        self._first: Progress | None = None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Console:
        if self._terminal:
            self._bar, self._task = _make_bar()
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the live line away; further updates are log lines."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _seconds_left(self, progress: Progress) -> float | None:
        """At the pace since decoding began; rows committed by earlier runs cost nothing.

        Rows that are decoded together end together: the first few say nothing about the pace.
        """
        if progress.phase != "decoding":
            return None
        if self._first is None:
            self._first = progress
        done = progress.rows_done - self._first.rows_done
        if done < _ROWS_FOR_A_PACE:
            return None
        pace = (progress.seconds - self._first.seconds) / done
        return pace * (progress.rows_total - progress.rows_done)

    def update(self, progress: Progress) -> None:
        """Show the latest state; cheap enough for every event."""
        self.last = progress
        line = progress_line(progress, self._seconds_left(progress))
        if self._bar is not None:
            total = progress.rows_total or None
            self._bar.update(
                self._task, description=line, completed=progress.rows_done, total=total
            )
            return
        now = self._clock()
        if progress.phase != self._phase or now - self._logged_at >= LOG_SECONDS:
            self._phase, self._logged_at = progress.phase, now
            print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _make_bar() -> tuple[Any, Any]:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    bar = Bar(
        SpinnerColumn(),
        BarColumn(bar_width=24),
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis"),
        ),
        TimeElapsedColumn(),
        console=Terminal(stderr=True),
        refresh_per_second=4,
        transient=True,
    )
    return bar, bar.add_task("starting", total=None)
