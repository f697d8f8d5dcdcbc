"""Terminals and what people want of them: NO_COLOR, `--plain`, pipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PLAIN = "jobs.plain"


def plain_option(command: Any) -> Any:
    """`--plain`, before the command's name: for screen readers, logs and `less`."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[_PLAIN] = value

    return click.option(
        "--plain",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="No colours, no frames, and lines in the place of what moves.",
    )(command)


def is_plain() -> bool:
    """Whether `--plain` was given, or the terminal cannot do better."""
    context = click.get_current_context(silent=True)
    wanted = bool(context is not None and context.meta.get(_PLAIN))
    return wanted or os.environ.get("TERM") == "dumb"


def can_move(stream: IO[str] | None = None) -> bool:
    """Whether a live view can be shown there (standard error by default)."""
    return (stream or sys.stderr).isatty() and not is_plain()


def terminal(*, stderr: bool = False) -> Console:
    """Where tables are printed. Rich itself heeds NO_COLOR and pipes."""
    from rich.console import Console

    class Plain(Console):
        """Rich draws frames in ASCII where it believes that there is nothing else."""

        @property
        def encoding(self) -> str:
            return "ascii"

    if is_plain():
        return Plain(stderr=stderr, color_system=None, no_color=True, highlight=False)
    return Console(stderr=stderr)


def numbers_table(title: str, first: str, columns: Sequence[str]) -> Table:
    """An empty table of numbers: `first` is what they are of, and the only column that folds."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
