"""`admg-batch nightly`: the summaries of the days that are due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import click

from jobs.console import json_text
from jobs.failures import (
    EXIT_CODES,
    EXIT_ERROR_ROWS,
    EXIT_INCOMPLETE,
    EXIT_USAGE,
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
    if dry_run:
        return _look(night, days, _old(night, last, days), not no_sample, as_json)
    said: Callable[[str], None] = _say_beside if as_json else _say
    told: dict[str, Any] = {"dates": [], "removed": []}
    code = 0
    for one in days:
        report, outcome, why = _one(ctx, night, one, said)
        code = _worse(code, outcome)
        told["dates"].append(_as_json(one, report, why))
    if code in (0, EXIT_ERROR_ROWS):
        told["removed"] = _remove(_old(night, last, days), said)
    if as_json:
        click.echo(json_text(redacted_values(told)))
    ctx.exit(code)


def now() -> datetime:
    """The time; tests put another one in its place."""
    return datetime.now(UTC)


def _say(line: str) -> None:
    click.echo(shown(line))


def _say_beside(line: str) -> None:
    click.echo(shown(line), err=True)


def _one(
    ctx: click.Context, night: Night, day: date, say: Callable[[str], None]
) -> tuple[DateReport | None, int, str]:
    """Do one date: its report, its exit code, and what went wrong.

    A failure of one date keeps no other from being done; interruptions end all.
    """
    from functools import partial

    from jobs.nightly_summaries import run_date
    from jobs.running import run_shown
    from pipeline.errors import Locked, PipelineError

    try:
        report = run_date(night, day, partial(run_shown, ctx), say=say)
    except click.ClickException as error:
        why, code = error.format_message(), error.exit_code
    except (Locked, PipelineError) as error:
        why, code = str(error), EXIT_INCOMPLETE
    except ValueError as error:
        why, code = str(error), EXIT_USAGE
    else:
        _show(report, say)
        errors = report.rows_error or report.bad_shards
        return report, EXIT_ERROR_ROWS if errors else 0, ""
    _say_beside(f"Error: date={day}: {why}")
    return None, code, why


def _worse(one: int, other: int) -> int:
    order = (0, EXIT_ERROR_ROWS, EXIT_INCOMPLETE, EXIT_USAGE)
    return max(one, other, key=order.index)


def _show(report: DateReport, say: Callable[[str], None]) -> None:
    from jobs.nightly.quality import quality_lines

    name = f"date={report.date}"
    if report.state != "done":
        what = "no input: nothing to do" if report.state == "empty" else "nothing new"
        return say(f"{name}: {what}")
    for stage, run in report.stages.items():
        new = run.rows_total - run.rows_reused
        length, gain = run.mean_acceptance_length, run.speedup
        say(
            f"{name}: {stage}: {run.rows_ok} ok, {run.rows_error} error, {new} of them now; "
            f"{_number(length)} tokens per target pass, speedup {_number(gain)}"
        )
    for sentence in report.bad_shards:
        _say_beside(f"Left out: {sentence}")
    if report.quality is not None:
        for line in quality_lines(report.quality):
            say(f"{name}: {line}")
        for alarm in report.quality.alarms:
            click.secho(f"ALARM {name}: {alarm}", err=True, bold=True, fg="red")
    say(f"{name}: {report.output}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _as_json(day: date, report: DateReport | None, why: str) -> dict[str, Any]:
    if report is None:
        return {"date": str(day), "state": "failed", "error": why}
    return {
        "date": str(day),
        "state": report.state,
        "output": report.output,
        "stages": {name: asdict(run) for name, run in report.stages.items()},
        "bad_shards": list(report.bad_shards),
        "quality": None if report.quality is None else report.quality.to_dict(),
    }


def _old(night: Night, last: date, days: list[date]) -> list[Old]:
    """The dates that are to be removed; not those that this command is for."""
    from jobs.nightly.dates import STAGES
    from jobs.nightly.retention import too_old

    keep = night.file.nightly.keep_days
    if keep is None:
        return []
    return [old for old in too_old(night.base.output, STAGES, last, keep) if old.date not in days]


def _remove(old: list[Old], say: Callable[[str], None]) -> list[str]:
    from jobs.nightly.retention import remove

    removed = []
    for one in old:
        if remove(one):
            say(f"date={one.date}: removed, for it is past nightly.keep_days")
            removed.append(str(one.date))
        else:
            click.echo(f"date={one.date}: not removed, a run is at work on it", err=True)
    return removed


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
        _say(outlook_line(outlook))
    for one in old:
        _say(f"date={one.date}: would be removed: {', '.join(one.folders)}")
    if plan is not None:
        _say(f"One prompt for each document of date={fullest.date} would be:")
        for line in plan_lines(plan):
            _say(f"  {line}")
    if hours is not None and plan is not None:
        gpus = hours * plan.actors * plan.gpus_per_actor
        _say(f"All that is left: about {hours:.3g} hours, {gpus:.3g} GPU-hours")
    click.echo("Nothing was written.")
