"""`admg-batch nightly`: the summaries of the days that are due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import click

from jobs import nightly_words as words
from jobs.console import json_text
from jobs.failures import (
    EXIT_CODES,
    EXIT_ERROR_ROWS,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    command_line,
    shown,
    verbose_option,
)
from jobs.option_kinds import ExampleCommand
from pipeline.redaction import redacted_values

if TYPE_CHECKING:
    from jobs.nightly.night import Night
    from jobs.nightly.retention import Old
    from jobs.nightly_summaries import DateReport

_EXAMPLE = """\
admg-batch nightly --example > nightly.toml
admg-batch nightly --config nightly.toml --dry-run
admg-batch nightly --config nightly.toml
"""


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=EXIT_CODES)
@click.option("--config", metavar="FILE", help="The nightly job file (TOML).")
@click.option("--example", is_flag=True, help="Print a nightly job file to copy, and end.")
@click.option(
    "--date",
    "day",
    metavar="DATE",
    help="The day whose documents are summarised.  [default: the last that has ended]",
)
@click.option(
    "--catch-up",
    metavar="DAYS",
    type=click.IntRange(0, 366),
    help="Look at so many days before it too, oldest first.  [default: the job file's]",
)
@click.option("--input", metavar="DIR", help="Folder of the days' date=... folders of shards.")
@click.option("--output", metavar="DIR", help="Folder for the days' summaries.")
@click.option("--model", metavar="DIR", help="A Hugging Face folder, or demo.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write and remove nothing.")
@click.option("--no-sample", is_flag=True, help="With --dry-run: load no model, reckon no hours.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@verbose_option
@click.pass_context
def nightly(
    ctx: click.Context,
    config: str | None,
    example: bool,
    day: str | None,
    catch_up: int | None,
    dry_run: bool,
    no_sample: bool,
    as_json: bool,
    **places: str | None,
) -> None:
    """Summarise each day's documents that have no summary yet.

    The shards of input/date=2026-11-20/ become the summaries in output/date=2026-11-20/. A tick
    that comes twice, late or after a failure does what is missing and nothing again.
    """
    if example:
        from jobs.nightly.example import EXAMPLE

        click.echo(EXAMPLE, nl=False)
        return
    if config is None:
        raise click.UsageError("--config must be given: --example prints a file to begin with")
    from jobs.dry_run import with_model
    from jobs.nightly.dates import due, logical_date, parse_date
    from jobs.nightly.file import read_nightly_file, time_zone
    from jobs.nightly.night import night_of
    from jobs.nightly.old_dates import old_dates
    from jobs.nightly.places import check_places

    file = read_nightly_file(config)
    flags: dict[str, Any] = dict(places)
    if flags["input"] is not None:
        flags["input"] = [flags["input"]]
    last = logical_date(now(), time_zone(file.nightly.time_zone), file.nightly.days_back)
    chosen = last if day is None else parse_date(day)
    before = file.nightly.catch_up_days if catch_up is None else catch_up
    keep = file.nightly.keep_days
    if keep is not None and before >= keep:
        right = f"it must be below nightly.keep_days ({keep})"
        raise click.UsageError(f"--catch-up is {before}: {right}")
    days = list(due(chosen, before))
    night = night_of(file, flags, config, resolve_model=with_model)
    check_places(night)
    if dry_run:
        return _look(night, days, old_dates(night, last, days), not no_sample, as_json)
    _tick(ctx, night, days, last, as_json)


def _tick(ctx: click.Context, night: Night, days: list[date], last: date, as_json: bool) -> None:
    """Do the dates, then remove what is too old."""
    from jobs.nightly.old_dates import old_dates, remove_dates
    from pipeline.signals import sigterm_interrupts

    said = words.say_beside if as_json else words.say
    told: dict[str, Any] = {"dates": [], "removed": []}
    code = 0
    # A second signal must not end what the first one has begun, wherever in the tick that was.
    with sigterm_interrupts():
        try:
            for one in days:
                report, outcome, why = _one(ctx, night, one, said)
                code = _worse(code, outcome)
                told["dates"].append(words.as_json(one, report, why))
            if code in (0, EXIT_ERROR_ROWS):
                told["removed"] = remove_dates(old_dates(night, last, days), said)
        except KeyboardInterrupt:
            kept = f"what is committed is kept in {shown(night.base.output)}"
            click.echo(f"Interrupted: {kept}. To go on, give the same command:\n", err=True)
            click.echo(f"  {command_line(ctx)}\n", err=True)
            ctx.exit(EXIT_INTERRUPTED)
    if as_json:
        click.echo(json_text(redacted_values(told)))
    ctx.exit(code)


def now() -> datetime:
    """The time; tests put another one in its place."""
    return datetime.now(UTC)


def _one(
    ctx: click.Context, night: Night, day: date, say: Callable[[str], None]
) -> tuple[DateReport | None, int, str]:
    """Do one date: its report, its exit code, and what went wrong.

    A failure of one date keeps no other from being done; interruptions end all.
    """
    from functools import partial

    from jobs.nightly_summaries import run_date
    from jobs.running import run_shown
    from pipeline.errors import PipelineError

    try:
        report = run_date(night, day, partial(run_shown, ctx, guarded=True), say=say)
    except click.ClickException as error:
        why, code = error.format_message(), error.exit_code
    except (PipelineError, OSError) as error:
        why, code = str(error), EXIT_INCOMPLETE
    except ValueError as error:
        why, code = str(error), EXIT_USAGE
    else:
        words.show(report, say)
        errors = report.rows_error or report.bad_shards
        return report, EXIT_ERROR_ROWS if errors else 0, ""
    words.say_beside(f"Error: date={day}: {why}")
    return None, code, why


def _worse(one: int, other: int) -> int:
    order = (0, EXIT_ERROR_ROWS, EXIT_INCOMPLETE, EXIT_USAGE)
    return max(one, other, key=order.index)


def _look(night: Night, days: list[date], old: list[Old], sample: bool, as_json: bool) -> None:
    """What a tick would do, date by date, and how long that would take."""
    from jobs.dry_run import plan_lines
    from jobs.nightly.outlook import look_at, outlook_line, plan_of

    found = [look_at(night, day) for day in days]
    # The longest of the dates says what a prompt costs.
    fullest = max(found, key=lambda outlook: outlook.prompts)
    plan = plan_of(night, fullest.date, True) if sample and fullest.prompts else None
    hours = None
    if plan is not None and plan.hours is not None:
        hours = plan.hours / plan.rows * sum(outlook.prompts for outlook in found)
    if as_json:
        told = {
            "dates": [asdict(o) for o in found],
            "to_remove": [str(o.date) for o in old],
            "hours": hours,
            "plan": None if plan is None else plan.to_dict(),
        }
        return click.echo(json_text(redacted_values(told)))
    for outlook in found:
        words.say(outlook_line(outlook))
    for one in old:
        words.say(f"date={one.date}: would be removed: {', '.join(one.folders)}")
    if plan is not None:
        words.say(f"One prompt for each document of date={fullest.date} would be:")
        for line in plan_lines(plan):
            words.say(f"  {line}")
    if hours is not None and plan is not None:
        gpus = hours * plan.actors * plan.gpus_per_actor
        words.say(f"All that is left: about {hours:.3g} hours, {gpus:.3g} GPU-hours")
    click.echo("Nothing was written.")
