"""Progress of a calibration on standard error: a moving line on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from jobs.console import duration
from jobs.terminal import can_move, terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_EVERY = 10.0


class Steps:
    """So many steps of one kind; use as a context manager.

    Args:
        what: the steps' name.
        total: how many there are.
        done: how many were done before now.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._first, self._done = what, total, done, done
        self._began = self._said = time.monotonic()
        self._moving: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Steps:
        if can_move():
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._moving = Progress(
                TextColumn(self._what),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=terminal(stderr=True),
            )
            self._moving.start()
            self._task = self._moving.add_task(
                self._what, total=self._total, completed=self._done, note=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._moving is not None:
            self._moving.stop()

    def step(self, note: str = "") -> None:
        """One more is done; `note` says what is known now."""
        self._done += 1
        if self._moving is not None and self._task is not None:
            self._moving.update(self._task, advance=1, note=note)
            return
        now = time.monotonic()
        if now - self._said < _EVERY and self._done < self._total:
            return
        self._said = now
        each = (now - self._began) / (self._done - self._first)
        left = duration(each * (self._total - self._done))
        line = f"{self._what}: {self._done} of {self._total}, {left} left"
        click.echo(f"{line}, {note}" if note else line, err=True)
