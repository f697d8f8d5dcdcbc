"""The command line. Commands parse, call and print; heavy imports are inside their bodies."""

from __future__ import annotations

from typing import Any

import click

from jobs.bench.command import bench
from jobs.bench.drafts.command import drafts
from jobs.bench.gpu.command import gpu
from jobs.bench.grid.command import grid
from jobs.bench.paper.command import paper
from jobs.bench.pipeline_command import pipeline
from jobs.calibrate_command import calibrate
from jobs.completion_command import completion
from jobs.doctor_command import doctor
from jobs.dry_run import dry_run_options, looks_ahead, show_plan
from jobs.failures import EXIT_CODES, EXIT_ERROR_ROWS, Main, verbose_option
from jobs.nightly_command import nightly
from jobs.options import ExampleCommand, run_options
from jobs.prepare_commands import prepare
from jobs.report_command import report
from jobs.sizing_command import sizing
from jobs.status_command import status
from jobs.stop_command import stop
from jobs.submit_command import submit
from jobs.terminal import plain_option
from jobs.widened_command import widened

_SETTINGS = {"max_content_width": 96, "help_option_names": ["-h", "--help"]}

_PREPARE = "admg-batch prepare demo --output demo-prompts --limit 8"
_RUN = "admg-batch run --input demo-prompts --output demo-output --model demo --chat"
_REPORT = "admg-batch report demo-output"


@click.group(cls=Main, context_settings=_SETTINGS, example=f"{_PREPARE}\n{_RUN}\n{_REPORT}")
@click.version_option(package_name="admg-batch", message="%(prog)s %(version)s")
@plain_option
def main() -> None:
    """Offline LLM batch generation on Ray: several tokens per forward pass, the same text.

    Prompt shards in Parquet go in, completions with acceptance statistics and speedup come out.
    """


main.add_command(prepare)
main.add_command(nightly)
main.add_command(submit)
main.add_command(status)
main.add_command(stop)
main.add_command(report)
main.add_command(sizing)
main.add_command(bench)
main.add_command(calibrate)
main.add_command(doctor)
main.add_command(completion)
bench.add_command(pipeline)
bench.add_command(drafts)
bench.add_command(grid)
bench.add_command(paper)
bench.add_command(gpu)
prepare.add_command(widened)


@main.command(cls=ExampleCommand, example=f"{_PREPARE}\n{_RUN}", notes=EXIT_CODES)
@run_options
@dry_run_options
@verbose_option
@click.pass_context
def run(
    ctx: click.Context,
    config: str | None,
    dry_run: bool,
    no_sample: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Decode every row of the input that the output does not hold yet.

    The same command on the same output goes on where the last one ended.
    """
    from jobs.job_file import JobFile, read_job_file
    from jobs.params import run_config
    from jobs.running import run_and_show

    job = JobFile() if config is None else read_job_file(config)
    settings = run_config(flags, job, config)
    if looks_ahead(dry_run, no_sample, as_json):
        return show_plan(settings, flags, job, sample=not no_sample, as_json=as_json)
    report = run_and_show(ctx, settings)
    if report.rows_error or report.bad_shards:
        ctx.exit(EXIT_ERROR_ROWS)
