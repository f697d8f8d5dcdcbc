"""`admg-batch bench grid`: the options, and nothing heavy before the body."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.bench.given import data_option, only_given
from jobs.failures import (
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    Failure,
    command_line,
    verbose_option,
)
from jobs.options import ExampleCommand

if TYPE_CHECKING:
    from jobs.bench.grid.run import Grid, Prompts
    from jobs.bench.runner import Plan

_WIDTH = 130
_WORKLOADS = ("summarization", "retrieval", "code", "chat", "copying")
_USUAL: dict[str, Any] = {
    "workload": _WORKLOADS,
    "batch": (1, 4, 16),
    "temperature": (0.0, 1.0),
    "minutes": 12.0,
    "max_tokens": 48,
}
_QUICK: dict[str, Any] = {
    "workload": ("demo", "copying"),
    "batch": (1, 4),
    "temperature": (0.0,),
    "minutes": 2.5,
    "max_tokens": 32,
}
_EXAMPLE = """
admg-batch bench grid --quick
admg-batch bench grid --minutes 12 --record grid.json
admg-batch bench grid --system auto:weights=int8 --batch 1 --workload chat
"""
_NOTES = """\
Each cell decodes one and a half batches of prompts (three at least), and gets its share of the time
that is left. Ctrl-C and the end of the time keep what is timed: the same command with the same
--record goes on from there. A cell that is timed once is as noisy as the machine, and the worst of
thirty such cells worse than any is: where that matters give --minutes more.

Exit codes: 0 all cells timed; 2 a mistake; 4 cells are left, or a system failed; 130 Ctrl-C.
"""


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@click.option(
    "--system", default="auto", show_default=True, help="auto, admg or ngram, as in `bench engine`."
)
@click.option(
    "--workload",
    multiple=True,
    metavar="NAME",
    help=f"As in `bench engine`. Repeatable.  [default: {', '.join(_WORKLOADS)}]",
)
@click.option(
    "--batch", type=int, multiple=True, help="Decoded together. Repeatable.  [default: 1, 4, 16]"
)
@click.option(
    "--temperature",
    type=float,
    multiple=True,
    help="0 is greedy. Repeatable.  [default: 0, 1]",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="For all cells; no cell is begun later.  [default: 12]",
)
@click.option("--max-tokens", type=int, help="New tokens of every prompt.  [default: 48]")
@click.option("--repeats", type=int, default=5, show_default=True, help="At most, of one cell.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Of the weights and the arithmetic.",
)
@click.option("--model", metavar="DIR", default="demo", help="A Hugging Face folder.")
@click.option("--threads", type=int, help="Of each system.  [default: all cores]")
@data_option
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A JSON file, written after each cell; what it holds already is not timed again.",
)
@click.option("--quick", is_flag=True, help="Four cells of demo prompts, 3 minutes on 2 cores.")
@verbose_option
@click.pass_context
def grid(ctx: click.Context, **flags: Any) -> None:
    """Auto against plain decoding over workloads, batches and temperatures, in one run.

    In every cell the two are timed in turn. Prints each cell's ratios, names the worst cell, and
    says what of the goals is reached; the last line is JSON.
    """
    given = only_given(flags)
    chosen = (_QUICK if given.pop("quick", False) else _USUAL) | given
    seconds, record = 60 * chosen.pop("minutes"), chosen.pop("record", None)
    plan, prompts, measured = _prepared(ctx, chosen, record)
    interrupted = False
    try:
        _time(plan, prompts, measured, seconds, record)
    except KeyboardInterrupt:
        interrupted = True
    # A record may hold cells that were not asked for.
    asked = plan.settings.cells
    left = [cell for cell in asked if cell not in measured.timed]
    _print(measured.only(asked), len(left))
    if interrupted:
        ctx.exit(EXIT_INTERRUPTED)
    if left:
        ctx.exit(EXIT_INCOMPLETE)


def _prepared(
    ctx: click.Context, chosen: dict[str, Any], record: Path | None
) -> tuple[Plan, Prompts, Grid]:
    """Everything that can be wrong is found before a model is loaded.

    Raises:
        ValueError: one sentence that says what is wrong.
    """
    import datetime

    from jobs.bench.grid.run import Grid, digests, prompts_by_batch, prompts_for, resumed
    from jobs.bench.machine import commit, machine, versions
    from jobs.bench.runner import check
    from jobs.bench.settings import Settings
    from jobs.bench.systems import parse_systems
    from pipeline.machine import usable_cores

    systems = parse_systems([name := chosen.pop("system")])
    if systems[-1].kind not in ("auto", "admg", "ngram"):
        raise ValueError(f"--system is {name}: it must be auto, admg or ngram, or a variant of one")
    for plural, key in (
        ("workloads", "workload"),
        ("batches", "batch"),
        ("temperatures", "temperature"),
    ):
        chosen[plural] = tuple(dict.fromkeys(chosen.pop(key)))
    threads = chosen.pop("threads", usable_cores())
    most = prompts_for(max(chosen["batches"]))
    settings = Settings(systems=systems, threads=threads, prompts=most, record=record, **chosen)
    before = _read(record)
    plan, prompts = check(settings), prompts_by_batch(settings)
    about = {
        "command": command_line(ctx),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(threads, plan.dtype),
        "versions": versions(plan.model),
        "commit": commit(),
        "max_tokens": settings.max_tokens,
        "data": None if settings.data is None else str(settings.data),
        "prompts": digests(prompts),
    }
    grid = Grid(about, name)
    if record is not None and before is not None:
        resumed(grid, before, record)
    return plan, prompts, grid


def _read(record: Path | None) -> Any:
    if record is None or not record.exists():
        return None
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--record is {record}: it is there and no JSON") from error


def _time(
    plan: Plan, prompts: Prompts, measured: Grid, seconds: float, record: Path | None
) -> None:
    from jobs.bench.grid.run import time_grid
    from jobs.bench.process import WorkerError
    from jobs.bench.show import write_record

    def keep(grid: Grid) -> None:
        if record is not None:
            write_record(record, grid.to_dict())

    try:
        time_grid(plan, prompts, measured, seconds, lambda line: click.echo(line, err=True), keep)
    except WorkerError as error:
        raise Failure(str(error), EXIT_INCOMPLETE) from error


def _print(measured: Grid, left: int) -> None:
    from rich.console import Console

    from jobs.bench.grid.report import (
        document,
        goals_table,
        grid_table,
        ratios_of,
        sentences,
    )

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    cells = ratios_of(measured)
    console.print(grid_table(cells, measured.system))
    console.print(goals_table(cells))
    for line in sentences(cells, left):
        click.echo(line)
    click.echo(json.dumps(document(measured)))
