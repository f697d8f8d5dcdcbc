"""`admg-batch submit`: the same options as `run`, for a cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.console import json_text
from jobs.failures import EXIT_INCOMPLETE, EXIT_INTERRUPTED, Failure, shown, verbose_option
from jobs.option_kinds import ExampleCommand, apply, listing, option, switch
from jobs.options import run_options
from pipeline.redaction import redacted_values

if TYPE_CHECKING:
    from jobs.ray_jobs import RayJobs
    from jobs.submission import ClusterJob
    from jobs.submit import Package, Sent

SUBMISSION = "Submission"


def address_option(group: str = "Options") -> Any:
    """`--address`, under a heading."""
    return option(
        group,
        "--address",
        metavar="URL",
        help="The cluster, as http://head:8265.  [default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or"
        " a Ray on this machine]",
    )


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object; all else goes to stderr."
)

submit_options = apply(
    [
        address_option(SUBMISSION),
        option(SUBMISSION, "--name", metavar="NAME", help="The job's name.  [default: its file's]"),
        option(
            SUBMISSION,
            "--nightly",
            is_flag=True,
            callback=switch,
            help="--config is a nightly job file: send `admg-batch nightly`.",
        ),
        option(
            SUBMISSION,
            "--logical-date",
            metavar="DATE",
            help="The date that it is for, as 2026-11-21.  [default: today; a night's last day]",
        ),
        option(
            SUBMISSION,
            "--again",
            is_flag=True,
            callback=switch,
            help="Send it though it has finished before.",
        ),
        option(
            SUBMISSION,
            "--wait/--no-wait",
            help="Show its log until it is over, and take its exit code.",
            default="wait",
        ),
        option(
            SUBMISSION,
            "--wheel",
            metavar="FILE",
            help="Run this wheel's code.  [default: what the cluster's image has]",
        ),
        option(
            SUBMISSION,
            "--ship-code",
            is_flag=True,
            callback=switch,
            help="Run the code that is installed here.",
        ),
        option(
            SUBMISSION,
            "--env",
            metavar="NAME",
            multiple=True,
            callback=listing,
            help="A variable of this environment that the job gets too; no secrets. Repeatable.",
        ),
        option(
            SUBMISSION,
            "--stop-grace",
            metavar="SECONDS",
            type=click.IntRange(min=1),
            help="How long it may take to end when it is stopped.",
            default=60,
        ),
        option(
            SUBMISSION, "--entrypoint-num-cpus", type=float, help="CPUs kept for the job's driver."
        ),
        option(
            SUBMISSION, "--entrypoint-memory", type=int, help="Bytes kept for the job's driver."
        ),
        option(
            SUBMISSION,
            "--entrypoint-resources",
            metavar="JSON",
            help='Where the driver runs, as {"driver": 1}.',
        ),
    ]
)
_NAMES = (
    *("address", "name", "nightly", "logical_date", "again", "wait", "wheel", "ship_code", "env"),
    *("stop_grace", "entrypoint_num_cpus", "entrypoint_memory", "entrypoint_resources"),
)

_EXAMPLE = """\
admg-batch submit --address http://head:8265 --config job.toml
admg-batch submit --config job.toml --logical-date 2026-11-21 --no-wait --env AWS_REGION
admg-batch submit --nightly --config nightly.toml --no-wait"""

_NOTES = """\
A job's name, date and configuration make its submission id, so that the same submission is
recognised: one that is running is followed (or, with --no-wait, named), one that has finished is
not sent again, and one that failed or was stopped goes on from what it has committed.

A cluster that asks for a token gets it where RAY_AUTH_MODE is token and RAY_AUTH_TOKEN or
RAY_AUTH_TOKEN_PATH is set. Paths that are not absolute are taken from this folder.

Exit codes: the job's own, as `admg-batch run` has them; 0 for one that is sent or running with
--no-wait; 2 for a mistake, found before anything is sent; 4 also where no cluster answers or
another job writes to the output; 130 for one that was stopped, and where Ctrl-C ends the waiting.
"""


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@submit_options
@run_options
@json_option
@verbose_option
@click.pass_context
def submit(ctx: click.Context, config: str | None, as_json: bool, **flags: Any) -> None:
    """Send a run to a Ray cluster.

    The options are those of `admg-batch run`, read and checked here; the cluster gets one resolved
    job file.
    """
    own = {name: flags.pop(name) for name in _NAMES}
    with tempfile.TemporaryDirectory(prefix="admg-batch-") as folder:
        ctx.exit(_submit(Path(folder), config, flags, own, as_json))


def _submit(
    folder: Path, config: str | None, flags: dict[str, Any], own: dict[str, Any], as_json: bool
) -> int:
    from jobs.ray_jobs import RayJobs
    from jobs.shipment import ship_nightly, ship_run
    from jobs.submission import Submission, job_name
    from jobs.submit import send

    ship = ship_nightly if own["nightly"] else ship_run
    shipment = ship(folder, flags, config, own["logical_date"])
    submission = Submission(
        job=own["name"] or job_name(config, shipment.output),
        logical_date=shipment.logical_date,
        fingerprint=shipment.fingerprint,
        output=shipment.output,
        version=metadata.version("admg-batch"),
    )
    package = _package(folder, shipment.command, own)
    jobs = RayJobs.connect(own["address"])
    sent = send(jobs, submission, package, bool(own["again"]))
    click.echo(shown(_sentence(sent)), err=as_json)
    taken = sent.verdict.do == "taken"
    waits = own["wait"] is not False and not taken
    ended = _follow(jobs, sent.job, as_json) if waits else sent.job
    if as_json:
        known = {"submitted": sent.is_new, "verdict": sent.verdict.do, "address": jobs.address}
        click.echo(json_text(redacted_values(known | ended.to_dict())))
    if taken:
        raise Failure("the job was not sent", EXIT_INCOMPLETE)
    return ended.code or 0


def _package(folder: Path, command: Sequence[str], own: dict[str, Any]) -> Package:
    from jobs.shipment import add_installed, add_wheel
    from jobs.submit import Package, env_of, resources_of

    if own["wheel"] is not None and own["ship_code"]:
        raise ValueError("--wheel and --ship-code contradict each other: give one of them")
    if own["wheel"] is not None:
        add_wheel(folder, own["wheel"])
    elif own["ship_code"]:
        add_installed(folder)
    return Package(
        folder=folder,
        command=command,
        env=env_of(own["env"] or ()),
        resources=resources_of(
            own["entrypoint_num_cpus"], own["entrypoint_memory"], own["entrypoint_resources"]
        ),
        grace_seconds=own["stop_grace"] or 60,
        own_code=own["wheel"] is not None or bool(own["ship_code"]),
    )


def _sentence(sent: Sent) -> str:
    job, earlier = sent.job, sent.verdict.earlier
    if sent.verdict.do == "running":
        return f"Already submitted: {job.id} is {job.status.lower()}. Nothing was sent."
    if sent.verdict.do == "taken":
        return f"{job.id} is {job.status.lower()} and writes to {job.output} at this moment."
    if sent.verdict.do == "finished":
        errors = " with error rows" if job.code else ""
        return f"Already done: {job.id} has finished{errors}. To send it all the same: --again"
    goes_on = f" It goes on from {earlier.id}, which {_end_of(earlier)}." if earlier else ""
    return f"Submitted {job.id}.{goes_on}"


def _end_of(job: ClusterJob) -> str:
    if job.status == "STOPPED":
        return "was stopped"
    if job.is_finished:
        return "has finished"
    return "failed" + ("" if job.exit_code is None else f" with exit code {job.exit_code}")


def _follow(jobs: RayJobs, job: ClusterJob, as_json: bool) -> ClusterJob:
    """Show the log until the job is over; how it ended goes to stderr."""
    if job.is_over:
        return job
    try:
        ended = jobs.follow(job.id, lambda text: click.echo(shown(text), nl=False, err=as_json))
    except KeyboardInterrupt:
        click.echo(f"\nNo longer waiting: {job.id} goes on. To stop it:\n", err=True)
        click.echo(f"  admg-batch stop --id {job.id}\n", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    click.echo(f"{ended.id}: {ended.status.lower()}, exit code {ended.code}", err=True)
    if ended.status == "FAILED" and ended.exit_code is None:
        click.echo(shown(ended.message), err=True)
    return ended
