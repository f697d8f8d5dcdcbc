"""`admg-batch bench paper`: its options, and nothing heavy before the command's body."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from jobs.failures import EXIT_INCOMPLETE, EXIT_INTERRUPTED, Failure, command_line, verbose_option
from jobs.options import ExampleCommand

_EXAMPLE = """
admg-batch bench paper --quick --output /tmp/paper
admg-batch bench paper --output deploy/records --run-code namespaces
admg-batch bench paper --model /models/Llama-2-13b-hf --dtype bfloat16 --output paper-13b \\
    --plan cnn_dailymail=draft-verify:llama-2-13b --timed-batch 16
"""
_TASKS = ("cnn_dailymail", "xsum", "humaneval")
_SECTIONS = ("main", "control", "ablation", "timed")
_NOTES = """\
The folder gets paper.json (every cell, as soon as it is finished), paper.md and its plots. The same
command goes on with what is missing, after Ctrl-C too; cells are named in paper.json, as
main/admg@xsum.

Exit codes:
  0    all that was asked for is in the record and on the page
  2    a mistake in the command or the data; nothing was loaded
  4    a cell failed; the page has what there is
  130  interrupted; the page has what there is, the same command goes on
"""


def _plans(ctx: click.Context, parameter: click.Parameter, value: Any) -> dict[str, str]:
    found = {}
    for text in value:
        task, equals, file = text.partition("=")
        if not equals or task not in _TASKS:
            raise click.BadParameter(f"{text!r} must be TASK=PLAN, TASK one of {', '.join(_TASKS)}")
        found[task] = file
    return found


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@click.option("--output", metavar="DIR", required=True, help="Folder of record, page and plots.")
@click.option(
    "--model", metavar="DIR", default="demo", help="A Hugging Face folder.  [default: demo]"
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(_TASKS),
    help="Repeatable.  [default: all]",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(_SECTIONS),
    help="A part of the page. Repeatable.  [default: all]",
)
@click.option(
    "--cells", multiple=True, metavar="PATTERN", help="Cells by name, as 'ablation/*'. Repeatable."
)
@click.option("--prompts", type=int, help="Of each task.  [default: 8]")
@click.option("--held-out", type=int, help="Others, to calibrate on.  [default: 5]")
@click.option("--trials", type=int, help="Sets that Draft & Verify's search tries.  [default: 60]")
@click.option("--repeats", type=int, help="Timed turns.  [default: 2]")
@click.option(
    "--plan",
    "plans",
    multiple=True,
    callback=_plans,
    metavar="TASK=PLAN",
    help="Draft & Verify's set for a task by plan file or published name, instead of a search.",
)
@click.option(
    "--run-code",
    type=click.Choice(["namespaces", "limits"]),
    help="Test the code that the model writes, which runs it: in namespaces of its own, or with "
    "limits alone.  [default: not run, no pass@1]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Where things are counted; below float32 rows may differ at near-ties.",
)
@click.option(
    "--timed-dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Where things are timed.",
)
@click.option("--batch", type=int, default=24, show_default=True, help="Where things are counted.")
@click.option(
    "--timed-batch", type=int, default=1, show_default=True, help="Where things are timed."
)
@click.option("--threads", type=int, help="Of the arithmetic.  [default: all cores]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of noise and random sets.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder with the tasks' files.  [default: ../shared/data beside the checkout]",
)
@click.option("--restart", is_flag=True, help="Begin anew where the folder holds a record.")
@click.option(
    "--page-only", is_flag=True, help="Write page and plots again from the folder's record."
)
@click.option("--quick", is_flag=True, help="Little of everything: demo model, about 5 minutes.")
@verbose_option
@click.pass_context
def paper(ctx: click.Context, output: str, **flags: Any) -> None:
    """The paper's comparison, rebuilt: ADMG, Draft & Verify, SWIFT-like, random, plain.

    Counts on three kinds of text what each drafter does to the same prompts, checks that every row
    is plain decoding's, ablates our reading of ADMG, times the systems, and writes a page of tables
    and plots. The demo model takes about an hour and a half on 2 cores.
    """
    from jobs.bench.paper.page import write_page
    from jobs.bench.paper.record import Record
    from jobs.bench.paper.settings import FULL, QUICK, Settings
    from jobs.bench.paper.start import check, open_record, run
    from pipeline.machine import usable_cores
    from pipeline.signals import sigterm_interrupts

    folder = Path(output)
    if flags.pop("page_only"):
        record = Record.read(folder)
        if record is None:
            raise ValueError(
                f"--output is {output}: it must hold a paper.json to write a page from"
            )
        click.echo(f"{write_page(folder, record)}")
        return
    restart = flags.pop("restart")
    sizes = QUICK if flags.pop("quick") else FULL
    own = {name: flags.pop(name) for name in ("prompts", "held_out", "trials", "repeats")}
    sizes = replace(sizes, **{name: value for name, value in own.items() if value is not None})
    settings = Settings(
        output=folder,
        sizes=sizes,
        tasks=tuple(dict.fromkeys(flags.pop("tasks"))) or _TASKS,
        sections=tuple(dict.fromkeys(flags.pop("only"))) or _SECTIONS,
        cells=flags.pop("cells") or ("*",),
        threads=flags.pop("threads") or usable_cores(),
        **flags,
    )

    def say(line: str) -> None:
        click.echo(line, err=True)

    checked = check(settings)
    record = open_record(checked, command_line(ctx), restart, say)
    if settings.run_code is not None:
        say(f"Warning: code that the model writes is run here, kept apart by {settings.run_code}.")
    try:
        with sigterm_interrupts():
            run(checked, record, say)
    except KeyboardInterrupt:
        click.echo("Interrupted: the same command goes on from here.", err=True)
        ctx.exit(EXIT_INTERRUPTED)
    except RuntimeError as error:
        raise Failure(str(error), EXIT_INCOMPLETE) from error
