"""The command line. Commands parse, call and print; heavy imports are inside their bodies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from jobs.bench.command import bench
from jobs.bench.pipeline_command import pipeline
from jobs.failures import (
    EXIT_CODES,
    EXIT_ERROR_ROWS,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    Failure,
    Main,
    command_line,
    is_verbose,
    verbose_option,
)
from jobs.options import ExampleCommand, run_options
from jobs.prepare_commands import prepare

if TYPE_CHECKING:
    from jobs.console import Console
    from pipeline.config import RunConfig
    from pipeline.run import RunReport

_SETTINGS = {"max_content_width": 96, "help_option_names": ["-h", "--help"]}

_PREPARE = "admg-batch prepare demo --output demo-prompts --limit 8"
_RUN = "admg-batch run --input demo-prompts --output demo-output --model demo --chat"
_REPORT = "admg-batch report demo-output"


@click.group(cls=Main, context_settings=_SETTINGS, example=f"{_PREPARE}\n{_RUN}\n{_REPORT}")
@click.version_option(package_name="admg-batch", message="%(prog)s %(version)s")
def main() -> None:
    """Offline LLM batch generation on Ray: several tokens per forward pass, the same text.

    Prompt shards in Parquet go in, completions with acceptance statistics and speedup come out.
    """


main.add_command(prepare)
main.add_command(bench)
bench.add_command(pipeline)


@main.command(cls=ExampleCommand, example=f"{_PREPARE}\n{_RUN}", notes=EXIT_CODES)
@run_options
@verbose_option
@click.pass_context
def run(ctx: click.Context, config: str | None, **flags: Any) -> None:
    """Decode every row of the input that the output does not hold yet.

    The same command on the same output goes on where the last one ended.
    """
    from jobs.job_file import JobFile, read_job_file
    from jobs.params import run_config

    job = JobFile() if config is None else read_job_file(config)
    settings = run_config(flags, job, config)
    report = _run(ctx, settings)
    if report.rows_error or report.bad_shards:
        ctx.exit(EXIT_ERROR_ROWS)


def _run(ctx: click.Context, settings: RunConfig) -> RunReport:
    from dataclasses import replace

    from jobs.console import Console
    from jobs.demo_model import DemoModelError, demo_model
    from jobs.report import print_summary, read_output
    from pipeline.errors import Locked
    from pipeline.signals import sigterm_interrupts

    with Console() as console, sigterm_interrupts():
        try:
            if settings.model == "demo":
                settings = replace(settings, model=str(demo_model()))
            from pipeline.run import run as run_pipeline

            report = run_pipeline(settings, on_progress=console.update)
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
    whole = read_output(settings.output)
    print_summary(
        replace(
            whole,
            rows_reused=report.rows_reused,
            seconds=report.seconds,
            tokens_per_second=report.tokens_per_second,
        )
    )
    for sentence in report.bad_shards:
        click.echo(f"Left out: {sentence}", err=True)
    return report


def _say_how_to_go_on(ctx: click.Context, console: Console, output: str, what: str) -> None:
    from jobs.report import rows_committed

    total = f" of {console.last.rows_total}" if console.last and console.last.rows_total else ""
    kept = f"{rows_committed(output)}{total} rows are kept in {output}"
    click.echo(f"{what}: {kept}. To go on, give the same command:\n", err=True)
    click.echo(f"  {command_line(ctx)}\n", err=True)


def _first_line(error: Exception, verbose: bool) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    hint = "" if verbose else " (-v shows the traceback)"
    return f"{type(error).__name__}: {lines[0].strip()}{hint}"


@main.command(cls=ExampleCommand, example=_REPORT)
@click.argument("output")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@verbose_option
def report(output: str, as_json: bool) -> None:
    """Show what an output holds.

    Rows, errors, tokens, acceptance, speedup, and one row to read. OUTPUT is the folder or URI
    that was given to `admg-batch run --output`. It need not be complete.
    """
    from jobs.report import print_summary, read_output

    whole = read_output(output)
    if as_json:
        click.echo(json.dumps(whole.to_dict(), ensure_ascii=False, default=str))
    else:
        print_summary(whole)
