"""`admg-batch bench`: the options, and nothing heavy before a command's body."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.bench.given import data_option, only_given
from jobs.failures import EXIT_INCOMPLETE, Failure, command_line, verbose_option
from jobs.options import ExampleCommand, ExampleGroup

if TYPE_CHECKING:
    from jobs.bench.runner import Report

_DEFAULTS: dict[str, Any] = {
    "system": ("admg", "transformers"),
    "workload": ("demo",),
    "batch": (16,),
    "temperature": (0.0,),
    "prompts": 64,
    "max_tokens": 64,
    "repeats": 3,
    "dtype": "auto",
    "model": "demo",
}
_QUICK: dict[str, Any] = {"batch": (8,), "prompts": 16, "max_tokens": 32}
_WIDTH = 100
_DROPS = (0, 4, 8, 12, 16)
_DROP_HELP = f"Dropped layers. Repeatable.  [default: {', '.join(map(str, _DROPS))}]"

_SYSTEM_HELP = """\
plain (always there), admg, ngram, auto, transformers, transformers-continuous,
transformers-lookup, vllm. Variants: admg:drop=8,tokens=4 (also quantile, threshold, exit,
similarity, verification, fill=0, remake=16, refresh=64, weights=int8, tail=4,
limit=0.5,window=32),
auto:store=65536 (lookup in other rows, off here, for a run repeats its prompts),
transformers:order=length, transformers-lookup:tokens=10. Repeatable."""

_NOTES = """\
Exit codes:
  0    every system was timed in every cell
  2    a mistake in the command, the data or the peer; nothing was loaded
  4    a system failed; the others' figures are printed
"""

_ENGINE_EXAMPLE = """
admg-batch bench engine --quick
admg-batch bench engine --workload code --batch 1 --batch 8 --record results.json
admg-batch bench engine --system admg:drop=4 --system admg:drop=8,tokens=2 --repeats 5
"""


@click.group(cls=ExampleGroup, example="admg-batch bench engine --quick")
def bench() -> None:
    """Measure on this machine: tokens per second beside plain decoding and other engines.

    Every system is a process of its own; all are timed in turn on the same prompts.
    """


def _about(name: str, text: str) -> str:
    value = _DEFAULTS[name]
    shown = (
        ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
        if isinstance(value, tuple)
        else value
    )
    return f"{text}  [default: {shown}]"


def _grid_options(command: Any) -> Any:
    options = [
        click.option(
            "--workload",
            multiple=True,
            metavar="NAME",
            help=_about(
                "workload",
                "summarization, long-summarization, retrieval, code, chat, demo or copying. "
                "Repeatable.",
            ),
        ),
        click.option(
            "--batch",
            type=int,
            multiple=True,
            help=_about("batch", "Sequences decoded together. Repeatable."),
        ),
        click.option(
            "--temperature",
            type=float,
            multiple=True,
            help=_about("temperature", "0 is greedy. Repeatable."),
        ),
        click.option("--prompts", type=int, help=_about("prompts", "Prompts of a workload.")),
        click.option(
            "--max-tokens", type=int, help=_about("max_tokens", "New tokens of every prompt.")
        ),
        click.option(
            "--repeats", type=int, help=_about("repeats", "Timed runs of every system and cell.")
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            help=_about("dtype", "Of the weights and the arithmetic, in all systems."),
        ),
        click.option("--model", metavar="DIR", help=_about("model", "A Hugging Face folder.")),
        click.option("--threads", type=int, help="Of every system.  [default: all cores]"),
        data_option,
        click.option(
            "--record",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Write a JSON file with the command, the date and every repeat.",
        ),
        click.option(
            "--quick",
            is_flag=True,
            help="A small run: demo model and prompts, under 3 minutes on 2 cores.",
        ),
    ]
    command = verbose_option(command)
    for option in reversed(options):
        command = option(command)
    return command


@bench.command(cls=ExampleCommand, example=_ENGINE_EXAMPLE, notes=_NOTES)
@click.option("--system", multiple=True, metavar="NAME", help=_about("system", _SYSTEM_HELP))
@click.option(
    "--peer-python",
    metavar="PATH",
    help="The python of the virtual environment that holds vllm.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Also what the controller of auto went by: costs, acceptance, its choices.",
)
@_grid_options
@click.pass_context
def engine(ctx: click.Context, **flags: Any) -> None:
    """Tokens per second of this engine, plain and drafting, beside other engines.

    Prints a table, then one line of JSON. Every system decodes the same token ids, so tokenizing
    is not part of any figure.
    """
    _bench(ctx, flags)


@bench.command(
    cls=ExampleCommand, example="admg-batch bench drops --workload summarization --batch 1"
)
@click.option("--drop", type=int, multiple=True, help=_DROP_HELP)
@click.option("--draft-tokens", type=int, default=4, show_default=True, help="Of every draft.")
@_grid_options
@click.pass_context
def drops(ctx: click.Context, drop: tuple[int, ...], draft_tokens: int, **flags: Any) -> None:
    """What dropping attention layers does: tokens per target pass, and what the clock says.

    The same run as `bench engine` with one variant of admg for every number of dropped layers,
    and a Markdown table beside the usual one.
    """
    variants = [f"admg:drop={n},tokens={draft_tokens}" for n in drop or _DROPS]
    _bench(ctx, {**flags, "system": (*variants, "transformers")}, markdown=True)


def _bench(ctx: click.Context, flags: dict[str, Any], markdown: bool = False) -> None:
    from jobs.bench.process import WorkerError
    from jobs.bench.runner import check, run
    from jobs.bench.settings import Settings
    from jobs.bench.show import record, write_record
    from jobs.bench.systems import parse_systems
    from pipeline.machine import usable_cores

    given = only_given(flags)
    explain = given.pop("explain", False)
    quick = _QUICK if given.pop("quick", False) else {}
    chosen = {"threads": usable_cores(), **_DEFAULTS, **quick, **given}
    systems = parse_systems(chosen.pop("system"))
    for plural, name in (("workloads", "workload"), ("batches", "batch")):
        chosen[plural] = tuple(dict.fromkeys(chosen.pop(name)))
    chosen["temperatures"] = tuple(dict.fromkeys(chosen.pop("temperature")))
    settings = Settings(systems=systems, **chosen)

    def keep(report: Report) -> None:
        if settings.record is not None:
            write_record(settings.record, record(report, command_line(ctx)))

    def say(line: str) -> None:
        click.echo(line, err=True)

    plan = check(settings)
    try:
        report = run(plan, say, keep)
    except WorkerError as error:
        raise Failure(str(error), EXIT_INCOMPLETE) from error
    _print(report, markdown, explain)
    if report.failed:
        ctx.exit(EXIT_INCOMPLETE)


def _print(report: Report, markdown: bool, explain: bool) -> None:
    from rich.console import Console

    from jobs.bench import tables
    from jobs.bench.show import document

    # Where nobody looks, nothing needs to be folded to fit.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(tables.results_table(report))
    console.print(tables.peaks_table(report))
    console.print(tables.time_table(report))
    for table in tables.explanations(report) if explain else ():
        console.print(table)
    for line in tables.notes(report):
        click.echo(line)
    if markdown:
        click.echo(f"\n{tables.drops_markdown(report)}\n")
    click.echo(json.dumps(document(report)))
