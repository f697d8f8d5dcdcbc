"""`admg-batch bench pipeline`: its options, and nothing heavy before the command's body."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from jobs.failures import Failure, command_line, verbose_option
from jobs.options import ExampleCommand
from jobs.whole_file import check_folder

_DEFAULTS = {
    "prompts": 56,
    "max_tokens": 64,
    "repeats": 3,
    "rows": 100_000,
    "committed": 1_000_000,
}
_QUICK = {"prompts": 8, "max_tokens": 16, "repeats": 1, "rows": 10_000, "committed": 50_000}
_EXAMPLE = """
admg-batch bench pipeline --quick
admg-batch bench pipeline --repeats 5 --committed 100000 --record results.json
"""
_WIDTH = 100


def _number(name: str, text: str) -> Any:
    default = _DEFAULTS[name.removeprefix("--").replace("-", "_")]
    return click.option(name, type=int, help=f"{text}  [default: {default}]")


@click.command(cls=ExampleCommand, example=_EXAMPLE)
@_number("--prompts", "Prompts decoded by the engine alone and through the pipeline.")
@_number("--max-tokens", "New tokens of every prompt.")
@_number("--repeats", "Turns of engine, engines and pipeline.")
@_number("--rows", "Rows of a run whose engine answers at once.")
@_number("--committed", "Rows that are committed already when a run is resumed.")
@click.option(
    "--threads",
    type=int,
    help="CPU threads of each engine, alone and in the pipeline.  [default: its share of all]",
)
@click.option("--actors", type=int, help="Engines of the pipeline.  [default: as of a run]")
@click.option(
    "--model", metavar="DIR", default="demo", help="A Hugging Face folder.  [default: demo]"
)
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a JSON file with the command, the date and every figure.",
)
@click.option("--quick", is_flag=True, help="A small run, about 2 minutes.")
@verbose_option
@click.pass_context
def pipeline(
    ctx: click.Context, quick: bool, model: str, record: Path | None, **flags: int | None
) -> None:
    """What the data plane costs beside the engine, and how fast a run resumes.

    Plain decoding through the pipeline against the engine alone, in turn, on the demo's prompts;
    rows per second with an engine that answers at once; a run that finds its rows committed.
    Prints a table, then one line of JSON. Works in a temporary folder.
    """
    from jobs.bench.pipeline import Sizes, measure
    from jobs.bench.show import write_record
    from jobs.demo_model import DemoModelError, demo_model
    from pipeline.signals import sigterm_interrupts

    given = {name: value for name, value in flags.items() if value is not None}
    sizes = Sizes(**(_DEFAULTS | (_QUICK if quick else {}) | given))
    check_folder("--record", record)
    try:
        folder = str(demo_model()) if model == "demo" else model
    except DemoModelError as error:
        raise Failure(str(error)) from error
    with sigterm_interrupts():
        found = measure(folder, sizes, lambda line: click.echo(line, err=True))
    if record is not None:
        date = found.pop("date")
        write_record(record, {"command": command_line(ctx), "date": date, **found})
    found.pop("date", None)
    _print(found)
    click.echo(json.dumps(found))


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    beside, null, resumed = found["overhead"], found["null_engine"], found["resume"]
    table = Table("", "figure", "")
    actors = beside["actors"]
    for name, what in (("ratio", "one engine"), ("ratio_to_engines", f"{actors} engines")):
        if name in beside:
            low, high = beside[f"{name}_low"], beside[f"{name}_high"]
            spread = f"{low:.3f} to {high:.3f}" if low < high else ""
            table.add_row(f"pipeline / {what} alone, seconds", f"{beside[name]:.3f}", spread)
    table.add_row("start-up of a run, model included", f"{beside['startup_seconds']:.1f} s", "")
    rows = f"{null['rows']:,} rows"
    table.add_row("no engine", f"{null['rows_per_second']:,.0f} rows/s", rows)
    table.add_row("start-up", f"{null['startup_seconds']:.1f} s", "no model")
    table.add_row("end: checked, merged", f"{null['finishing_seconds']:.1f} s", rows)
    rows = f"{resumed['committed']:,} committed"
    files = f"{rows}, {resumed['files']:,} files"
    table.add_row("resume: what is there", f"{resumed['checking_seconds']:.1f} s", files)
    todo = f"{rows}, {resumed['rows_to_do']} to do"
    table.add_row("resume: to the last block", f"{resumed['until_committed_seconds']:.1f} s", todo)
    table.add_row("end: checked, merged", f"{resumed['finishing_seconds']:.1f} s", rows)
    table.add_row("nothing to do", f"{resumed['nothing_to_do_seconds']:.1f} s", rows)
    # Where nobody looks, nothing needs to be folded to fit.
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)
