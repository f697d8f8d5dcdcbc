"""`admg-batch stop`: end a run in peace, on a cluster or on this machine."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from jobs.console import json_text
from jobs.failures import EXIT_INCOMPLETE, Failure, shown, verbose_option
from jobs.option_kinds import ExampleCommand
from jobs.status_command import id_option
from jobs.submit_command import address_option, json_option
from pipeline.redaction import redacted_values

if TYPE_CHECKING:
    from jobs.ray_jobs import RayJobs
    from jobs.submission import ClusterJob

_EXAMPLE = """\
admg-batch stop --address http://head:8265 --id nightly-2026-11-21-0123456789ab
admg-batch stop demo-output"""

_NOTES = """\
The run gets SIGTERM, as from Ctrl-C: it gives up the rows that it has not committed, and releases
the output. On a cluster it is killed after the --stop-grace of its submission. OUTPUT alone means
the job of the named cluster that writes to it or, where there is none and no --address is given, a
run of this machine.

Exit codes: 0 when it has ended, or had ended before; 4 when it still runs after --timeout, or
nothing could be stopped.
"""

_GO_ON = " To go on, give the command again that it was started with."


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@click.argument("output", required=False)
@id_option
@address_option()
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=300.0,
    help="How long to wait for the end.  [default: 300]",
)
@json_option
@verbose_option
def stop(
    output: str | None,
    submission_id: str | None,
    address: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Stop a run, wait until it has ended, and say what is kept."""
    from jobs.ray_jobs import RayJobs, has_address

    if output is None and submission_id is None:
        raise ValueError("OUTPUT or --id must be given")
    if submission_id is not None or has_address(address):
        jobs = RayJobs.connect(address)
        job = jobs.get(submission_id) if submission_id is not None else _job_of(jobs, output or "")
        if job is not None:
            _stop_job(jobs, job, timeout, as_json)
            return
        if address:  # the user said where: no process of this machine is meant
            said = f"{jobs.address} runs no job that writes to {output}: nothing was stopped"
            raise Failure(said, EXIT_INCOMPLETE)
    _stop_here(output or "", timeout, as_json)


def _job_of(jobs: RayJobs, output: str) -> ClusterJob | None:
    from jobs.submission import absolute

    mine = [j for j in jobs.ours() if j.output == absolute(output) and not j.is_over]
    return mine[-1] if mine else None


def _stop_job(jobs: RayJobs, job: ClusterJob, timeout: float, as_json: bool) -> None:
    if job.is_over:
        _tell(f"{job.id} had ended before: {job.status.lower()}.", job.output, False, job, as_json)
        return
    jobs.stop(job.id)
    ended = jobs.wait(job.id, timeout)
    if not ended.is_over:
        raise Failure(
            f"{job.id} is {ended.status.lower()} after {timeout:g} s: it was told to end, and is "
            "killed when its --stop-grace is over",
            EXIT_INCOMPLETE,
        )
    said = f"Stopped {job.id}."
    if ended.status != "STOPPED":
        said = f"{job.id} ended by itself: {ended.status.lower()}."
    _tell(said, job.output, ended.status == "STOPPED", ended, as_json)


def _stop_here(output: str, timeout: float, as_json: bool) -> None:
    """Stop the process that holds the lease, where it is certain to be one of this machine."""
    from jobs.output_state import holder

    owner = holder(output)
    if owner is None:
        _tell(f"Nothing runs on {output}.", output, False, None, as_json)
        return
    if not owner.is_here:
        raise Failure(
            f"{output} is held by {owner}, which is no process of this machine: stop it there, or "
            "on its cluster with --address",
            EXIT_INCOMPLETE,
        )
    try:
        with suppress(ProcessLookupError):  # it may just have ended
            os.kill(owner.pid, signal.SIGTERM)
    except PermissionError as error:
        raise Failure(f"{output} is held by {owner}: {error}", EXIT_INCOMPLETE) from error
    end = time.monotonic() + timeout
    while owner.is_here:
        if time.monotonic() >= end:
            said = f"{owner} still runs after {timeout:g} s; it was told to end"
            raise Failure(said, EXIT_INCOMPLETE)
        time.sleep(0.1)
    _tell(f"Stopped {owner}.", output, True, None, as_json)


def _tell(said: str, output: str, stopped: bool, job: ClusterJob | None, as_json: bool) -> None:
    """Say what has become of it, what is kept, and how to go on."""
    from jobs.output_state import output_state
    from jobs.report import rows_committed
    from pipeline.errors import PipelineError

    state, kept = None, 0
    try:
        if output:
            state, kept = output_state(output), rows_committed(output)
    except (PipelineError, OSError, ValueError) as error:
        click.echo(shown(f"The output cannot be seen from here: {error}"), err=True)
    click.echo(shown(said), err=as_json)
    if state is not None and state.state != "empty":
        total = "" if state.rows_total is None else f" of {state.rows_total}"
        how = "" if state.state == "finished" else _GO_ON
        click.echo(shown(f"{kept}{total} rows are kept in {output}.{how}"), err=as_json)
    if as_json:
        known = {"stopped": stopped, "rows_kept": kept, "job": job and job.to_dict()}
        whole = known | {"output": state and state.to_dict()}
        click.echo(json_text(redacted_values(whole)))
