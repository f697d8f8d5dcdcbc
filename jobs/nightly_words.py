"""What `admg-batch nightly` says of its dates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Any

import click

from jobs.failures import shown

if TYPE_CHECKING:
    from jobs.nightly_summaries import DateReport


def say(line: str) -> None:
    """A line for people."""
    click.echo(shown(line))


def say_beside(line: str) -> None:
    """A line beside what is asked for: on standard error."""
    click.echo(shown(line), err=True)


def show(report: DateReport, said: Callable[[str], None]) -> None:
    """Say what was done for a date; alarms and bad shards on standard error."""
    from jobs.nightly.quality import quality_lines

    name = f"date={report.date}"
    if report.state != "done":
        what = "no input: nothing to do" if report.state == "empty" else "nothing new"
        return said(f"{name}: {what}")
    for stage, run in report.stages.items():
        new = run.rows_total - run.rows_reused
        length, gain = run.mean_acceptance_length, run.speedup
        said(
            f"{name}: {stage}: {run.rows_ok} ok, {run.rows_error} error, {new} of them now; "
            f"{_number(length)} tokens per target pass, speedup {_number(gain)}"
        )
    for sentence in report.bad_shards:
        say_beside(f"Left out: {sentence}")
    if report.quality is not None:
        for line in quality_lines(report.quality):
            said(f"{name}: {line}")
        for why in report.quality.alarms:
            alarm(f"ALARM {name}: {why}")
    said(f"{name}: {report.output}")


def alarm(line: str) -> None:
    """A line that is to be seen."""
    from rich.text import Text

    from jobs.terminal import terminal

    # In one line whatever the width: logs are searched for it.
    terminal(stderr=True).print(Text(shown(line), style="bold red"), soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def as_json(day: date, report: DateReport | None, why: str) -> dict[str, Any]:
    """What was done for a date, fit for JSON; `why` it failed where there is no report."""
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
