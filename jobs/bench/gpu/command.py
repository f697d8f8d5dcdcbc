"""`admg-batch bench gpu`: its options, and nothing heavy before the command's body."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.failures import EXIT_INCOMPLETE, EXIT_INTERRUPTED, command_line, verbose_option
from jobs.option_kinds import ExampleCommand
from jobs.whole_file import check_folder, write_whole

if TYPE_CHECKING:
    from jobs.bench.gpu.harness import Found

_WIDTH = 110
_PARTS = {"dummy": ("dummy",), "widened": ("widened",), "both": ("dummy", "widened")}
_EXAMPLE = """\
admg-batch bench gpu --record gpu.json --html gpu.html
admg-batch bench gpu --weights dummy --shape codellama-13b --minutes 5
admg-batch bench gpu --device cpu --tiny"""
_NOTES = """\
Two parts. With made-up weights of the shape: plain decoding beside the roofline, prefill, draft
passes and verification, and what drafts would gain by these costs with an assumed acceptance. With
the demo model widened to the shape (see prepare widened): its real text and acceptance, auto beside
plain decoding, then transformers and vLLM on the same prompts.

Exit codes:
  0    measured; what was left out for time or memory is named
  2    a mistake in the command, an option that the chosen parts do not use, or no such device;
       nothing was started
  4    nothing could be measured
  130  interrupted; what was measured by then is printed and recorded
"""


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@click.option(
    "--shape",
    type=click.Choice(["llama-2-13b", "codellama-13b"]),
    default="llama-2-13b",
    show_default=True,
    help="Of the made-up weights, and what the model is widened to.",
)
@click.option(
    "--weights", type=click.Choice(list(_PARTS)), default="both", show_default=True, help="Parts."
)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="Toy sizes, to see that all of it works; 2 minutes.")
@click.option(
    "--minutes", type=float, default=10.0, show_default=True, help="What fits no more is left out."
)
@click.option(
    "--model",
    metavar="DIR",
    default="demo",
    show_default=True,
    help="What is widened, or a widened checkpoint.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the widened checkpoint lies or is made, 20 GB.  [default: the cache]",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="As for bench engine; else the demo's prompts."
)
@click.option("--peer-python", metavar="PATH", help="The python of an environment with vllm.")
@click.option("--threads", type=int, help="Of every process.  [default: all cores]")
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a JSON file, anew after each cell.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page.")
@verbose_option
@click.pass_context
def gpu(
    ctx: click.Context, weights: str, record: Path | None, html: Path | None, **flags: Any
) -> None:
    """What passes of a 13B model cost on this GPU, and what drafting gains on real text.

    Prints tables, then one line of JSON.
    """
    from jobs.bench.gpu.harness import check_device, run
    from jobs.bench.gpu.page import page
    from jobs.bench.gpu.record import document
    from jobs.bench.gpu.record import record as recorded
    from jobs.bench.gpu.settings import Settings
    from jobs.bench.show import write_record
    from pipeline.machine import usable_cores
    from pipeline.signals import sigterm_interrupts

    flags["threads"] = flags["threads"] or usable_cores()
    settings = Settings(parts=_PARTS[weights], **flags)
    check_folder("--record", record)
    check_folder("--html", html)
    check_device(settings.device)

    def keep(found: Found) -> None:
        if record is not None:
            write_record(record, recorded(found, command_line(ctx)))

    with sigterm_interrupts():
        found = run(settings, lambda line: click.echo(line, err=True), keep)
    if html is not None:
        write_whole(html, page(found))
    _print(found)
    click.echo(json.dumps(document(found)))
    if found.interrupted:
        click.echo("Interrupted: what was measured by then is above.", err=True)
        ctx.exit(EXIT_INTERRUPTED)
    if found.empty:
        ctx.exit(EXIT_INCOMPLETE)


def _print(found: Found) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from jobs.bench.gpu.goals import goals
    from jobs.bench.gpu.sheets import sheets

    # Where nobody looks, nothing needs to be folded to fit.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for sheet in sheets(found):
        table = Table(title=sheet.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(sheet.columns):
            table.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
        if sheet.note:
            click.echo(sheet.note)
    for goal in goals(found):
        value = "-" if goal.found is None else f"{goal.found:.2f}"
        click.echo(f"{goal.state}: {goal.what}: {value}, at least {goal.least:g}")
