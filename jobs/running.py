"""A run as commands give it: shown while it works, its failures turned into exit codes.

`run` and `nightly` share this, so that a run that ends early says the same in both.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from jobs.console import Console
from jobs.explained import print_choices
from jobs.failures import (
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    Failure,
    command_line,
    is_verbose,
    shown,
)

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.run import RunReport

_SECONDS_TO_COUNT = 1.0


def run_and_show(ctx: click.Context, settings: RunConfig) -> RunReport:
    """Run, then print the summary of the output.

    Raises:
        Failure: the run ended early, or another one holds the output.
        ValueError: a user's mistake.
    """
    from jobs.report import print_summary, read_output

    report = run_shown(ctx, settings)
    whole = read_output(settings.output)
    print_summary(
        replace(
            whole,
            rows_reused=report.rows_reused,
            rows_not_in_input=report.rows_not_in_input,
            seconds=report.seconds,
            tokens_per_second=report.tokens_per_second,
        )
    )
    if settings.explain:
        print_choices(settings.output)
    for sentence in report.bad_shards:
        click.echo(shown(f"Left out: {sentence}"), err=True)
    return report


def run_shown(ctx: click.Context, settings: RunConfig, guarded: bool = False) -> RunReport:
    """Run with its progress shown; interruptions end the command.

    `guarded`: the caller is inside of `sigterm_interrupts` and stays there while it cleans up.

    Raises:
        Failure: the run ended early, or another one holds the output.
        ValueError: a user's mistake.
    """
    from jobs.demo_model import DemoModelError, demo_model
    from pipeline.errors import Locked
    from pipeline.signals import sigterm_interrupts

    with Console() as console, nullcontext() if guarded else sigterm_interrupts():
        try:
            if settings.model == "demo":
                settings = replace(settings, model=str(demo_model()))
            from pipeline.run import run as run_pipeline

            return run_pipeline(settings, on_progress=console.update)
        except DemoModelError as error:
            raise Failure(str(error)) from error
        except KeyboardInterrupt:
            console.close()
            _say_how_to_go_on(ctx, console, settings.output, "Interrupted")
            ctx.exit(EXIT_INTERRUPTED)
        except ValueError:
            raise
        except Locked as error:
            raise Failure(str(error), EXIT_INCOMPLETE) from error
        except Exception as error:
            console.close()
            _say_how_to_go_on(ctx, console, settings.output, "Ended early")
            raise Failure(_first_line(error, is_verbose(ctx)), EXIT_INCOMPLETE) from error


def _say_how_to_go_on(ctx: click.Context, console: Console, output: str, what: str) -> None:
    last = console.last
    kept = _kept(output, last.rows_total if last else 0)
    click.echo(f"{what}: {shown(kept)}. To go on, give the same command:\n", err=True)
    click.echo(f"  {command_line(ctx)}\n", err=True)


def _kept(output: str, total: int) -> str:
    """What is kept; without its count where the storage fails: nobody wants to wait for it now."""
    from jobs.report import rows_committed
    from pipeline.errors import PipelineError
    from pipeline.retry import Patience

    try:
        count = rows_committed(output, Patience(_SECONDS_TO_COUNT))
    except (PipelineError, OSError, ValueError):
        return f"what is committed is kept in {output}"
    # Rows that are no longer in the input are no part of its number.
    of = f" of {total}" if count <= total else ""
    return f"{count}{of} rows are kept in {output}"


def _first_line(error: Exception, verbose: bool) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    hint = "" if verbose else " (-v shows the traceback)"
    return f"{type(error).__name__}: {lines[0].strip()}{hint}"
