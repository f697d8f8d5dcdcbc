"""`admg-batch status`: how far a run is, from its output and from its cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from jobs.console import json_text
from jobs.failures import EXIT_INCOMPLETE, Failure, shown, verbose_option
from jobs.option_kinds import ExampleCommand
from jobs.submit_command import address_option
from pipeline.redaction import redacted_values

if TYPE_CHECKING:
    from rich.table import Table

    from jobs.output_state import OutputState
    from jobs.submission import ClusterJob

id_option = click.option("--id", "submission_id", metavar="ID", help="A submission of a cluster.")

_EXAMPLE = """\
admg-batch status demo-output
admg-batch status --address http://head:8265 --id nightly-2026-11-21-0123456789ab --json
admg-batch status --address http://head:8265"""

_NOTES = """\
OUTPUT is the folder or URI that was given to `admg-batch run --output` or `submit --output`. With
neither OUTPUT nor --id, the cluster's submissions are listed. The exit code is 0 for whatever
could be seen.
"""


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@click.argument("output", required=False)
@id_option
@address_option()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@verbose_option
def status(
    output: str | None, submission_id: str | None, address: str | None, as_json: bool
) -> None:
    """Show how far a run is.

    State, rows done and left, tokens per second, speedup, the time left and errors by code, from
    the heartbeat beside the output; and the job's state from its cluster, where one is named.
    """
    job, jobs = _on_cluster(output, submission_id, address)
    if output is None and submission_id is None:
        _list(jobs, as_json)
        return
    place = output or (job.output if job is not None else "")
    state, unseen = _state(place, bool(output))
    if as_json:
        known: dict[str, Any] = {} if state is None else state.to_dict()
        click.echo(json_text(redacted_values(known | {"job": job and job.to_dict()})))
        return
    from jobs.terminal import terminal

    terminal().print(_table(job, state))
    if unseen:
        click.echo(shown(f"The output cannot be seen from here: {unseen}"), err=True)


def _on_cluster(
    output: str | None, submission_id: str | None, address: str | None
) -> tuple[ClusterJob | None, list[ClusterJob]]:
    """The job that is meant, and all of them. An output alone asks only a cluster that is named."""
    from jobs.ray_jobs import RayJobs, has_address
    from jobs.submission import absolute

    if output is not None and submission_id is None and not has_address(address):
        return None, []
    cluster = RayJobs.connect(address)
    if submission_id is not None:
        return cluster.get(submission_id), []
    found = cluster.ours()
    if output is None:
        return None, found
    mine = [job for job in found if job.output == absolute(output)]
    return (mine[-1] if mine else None), []


def _state(output: str, must: bool) -> tuple[OutputState | None, str]:
    """The output's state; why there is none, where a job's output lies out of reach."""
    from jobs.output_state import output_state
    from pipeline.errors import PipelineError

    if not output:
        return None, "the job was not sent by admg-batch submit"
    try:
        return output_state(output), ""
    except (PipelineError, OSError, ValueError) as error:
        if must and not isinstance(error, ValueError):
            raise Failure(str(error), EXIT_INCOMPLETE) from error
        if must:
            raise
        return None, str(error)


def _table(job: ClusterJob | None, state: OutputState | None) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title="Status", title_justify="left")
    for name, value in [*_job_lines(job), *_output_lines(state)]:
        table.add_row(Text(name, style="bold"), Text(shown(value), overflow="fold"))
    return table


def _job_lines(job: ClusterJob | None) -> list[tuple[str, str]]:
    from jobs.console import duration

    if job is None:
        return []
    code = "" if job.code is None else f", exit code {job.code}"
    lines = [("submission", job.id), ("job", f"{job.status.lower()}{code}")]
    if job.started:
        lines.append(("time", duration((job.ended or time.time()) - job.started)))
    if job.status == "FAILED" and job.exit_code is None:
        lines.append(("message", job.message[:2000]))
    return lines


def _output_lines(state: OutputState | None) -> list[tuple[str, str]]:
    from jobs.console import duration

    if state is None:
        return []
    words = [state.state, *([state.phase] if state.phase else [])]
    lines = [("output", state.output), ("state", ", ".join(words))]
    if state.reason:
        lines.append(("reason", state.reason))
    if state.holder:
        lines.append(("held by", state.holder))
    if state.state in ("running", "silent") and state.heartbeat_age_seconds is not None:
        lines.append(("heartbeat", f"{duration(state.heartbeat_age_seconds)} ago"))
    total = "" if state.rows_total is None else f" of {state.rows_total}, {state.rows_left} left"
    lines.append(("rows", f"{state.rows_done} done{total}"))
    if state.tokens_per_second:
        lines.append(("tokens/s", f"{state.tokens_per_second:.1f} in completions"))
    if state.mean_acceptance_length is not None:
        lines.append(("mean acceptance length", f"{state.mean_acceptance_length:.2f}"))
    if state.speedup is not None:
        lines.append(("speedup", f"{state.speedup:.2f}"))
    if state.eta_seconds is not None and state.state == "running":
        lines.append(("time left", duration(state.eta_seconds)))
    lines += [("error rows", f"{n} {code}") for code, n in state.errors_by_code.items()]
    return lines


def _list(jobs: list[ClusterJob], as_json: bool) -> None:
    if as_json:
        click.echo(json_text(redacted_values({"jobs": [job.to_dict() for job in jobs]})))
        return
    from rich.table import Table
    from rich.text import Text

    from jobs.terminal import terminal

    table = Table(title="Submissions", title_justify="left")
    for heading in ("submission", "state", "exit code", "output"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        code = "" if job.code is None else str(job.code)
        cells = (job.id, job.status.lower(), code, job.output)
        table.add_row(*(Text(shown(cell)) for cell in cells))
    terminal().print(table)
