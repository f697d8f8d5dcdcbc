"""The live view of a run: a bar, and a few lines under it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.console import duration, errors_text
from jobs.terminal import terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.progress import Progress

_BAR = 32


class LiveView:
    """Shows `Progress` values in place, until it is closed."""

    def __init__(self) -> None:
        from rich.live import Live

        self._latest: Progress | None = None
        self._told = time.monotonic()
        self._live = Live(
            console=terminal(stderr=True),
            refresh_per_second=4,
            transient=True,
            get_renderable=self._draw,
        )
        self._live.start()

    def show(self, progress: Progress) -> None:
        """Take the latest value; it is drawn when its turn comes."""
        self._latest, self._told = progress, time.monotonic()

    def _draw(self) -> RenderableType:
        latest = self._latest
        if latest is None:
            return ""
        # The clock goes on where nothing else does, as while a model is loaded.
        return drawn(replace(latest, seconds=latest.seconds + time.monotonic() - self._told))

    def close(self) -> None:
        """Take the view away."""
        self._live.stop()


def drawn(progress: Progress) -> RenderableType:
    """One value as people see it."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    known = bool(progress.rows_total)
    head: Any = Table.grid(padding=(0, 1))
    head.add_row(
        Text(progress.phase, style="bold"),
        ProgressBar(progress.rows_total or None, progress.rows_done, width=_BAR, pulse=not known),
        Text(f"{progress.rows_done}/{progress.rows_total} rows" if known else ""),
        Text(duration(progress.seconds), style="dim"),
        Text("" if progress.eta_seconds is None else f"{duration(progress.eta_seconds)} left"),
    )
    body = Table.grid(padding=(0, 2))
    for name, value in facts(progress):
        style = "yellow" if name == "error rows" else ""
        body.add_row(Text(name, style="dim"), Text(value, style=style, overflow="ellipsis"))
    return Group(head, Padding(body, (0, 0, 0, 2)))


def facts(progress: Progress) -> list[tuple[str, str]]:
    """What there is to say beside the rows, by name."""
    if not progress.actors:
        return []
    speeds = f"{progress.tokens_per_second:.1f} in completions"
    lines = [("tokens/s", f"{speeds}, {progress.prompt_tokens_per_second:.1f} in prompts")]
    if progress.mean_acceptance_length is not None:
        lines.append(
            ("acceptance", f"{progress.mean_acceptance_length:.2f} tokens per target pass")
        )
    if progress.speedup is not None:
        lines.append(("speedup", f"{progress.speedup:.2f} (estimated)"))
    lines.append(("actors", f"{progress.actors_alive} alive of {progress.actors}"))
    if progress.rows_error:
        lines.append(("error rows", errors_text(progress)))
    return lines
