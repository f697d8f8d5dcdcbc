"""What a run shows while it works: a live view on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.live import LiveView
    from pipeline.progress import Progress

LOG_SECONDS = 10.0
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


def errors_text(progress: Progress) -> str:
    """Error rows with their codes, as far as these are known: 5 (3 deadline, 1 crashed)."""
    by_count = sorted(progress.errors_by_code.items(), key=lambda item: (-item[1], item[0]))
    codes = ", ".join(f"{count} {printable(code)}" for code, count in by_count)
    return f"{progress.rows_error} ({codes})" if codes else str(progress.rows_error)


def progress_line(progress: Progress) -> str:
    """One line: phase, rows, errors, tokens per second, acceptance, speedup, actors, time left."""
    if progress.phase in ("checking", "starting"):
        return {"checking": "checking the input", "starting": "loading the model"}[progress.phase]
    parts = [f"{progress.phase} {progress.rows_done}/{progress.rows_total} rows"]
    if progress.rows_error:
        parts.append(f"error rows: {errors_text(progress)}")
    parts.append(f"{progress.tokens_per_second:.1f} tokens/s")
    if progress.prompt_tokens_per_second:
        parts.append(f"{progress.prompt_tokens_per_second:.1f} prompt tokens/s")
    if progress.mean_acceptance_length is not None:
        parts.append(f"{progress.mean_acceptance_length:.2f} tokens per target pass")
    if progress.speedup is not None:
        parts.append(f"speedup {progress.speedup:.2f}")
    if progress.actors_alive < progress.actors:
        parts.append(f"{progress.actors_alive} of {progress.actors} actors alive")
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    return " | ".join(parts)


class Console:
    """Shows `Progress` values on stderr: a live view on a terminal, log lines otherwise.

    Use as a context manager and hand `update` to the run. `last` is the latest value seen.
    """

    def __init__(
        self, *, terminal: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.last: Progress | None = None
        self._terminal = terminal
        self._clock = clock
        self._logged_at = -LOG_SECONDS
        self._phase = ""
        self._view: LiveView | None = None

    def __enter__(self) -> Console:
        from jobs.terminal import can_move

        if can_move() if self._terminal is None else self._terminal:
            from jobs.live import LiveView

            self._view = LiveView()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the live view away; further updates are log lines."""
        if self._view is not None:
            self._view.close()
            self._view = None

    def update(self, progress: Progress) -> None:
        """Show the latest state; cheap enough for every event."""
        self.last = progress
        if self._view is not None:
            self._view.show(progress)
            return
        now = self._clock()
        if progress.phase != self._phase or now - self._logged_at >= LOG_SECONDS:
            self._phase, self._logged_at = progress.phase, now
            line = progress_line(progress)
            print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
