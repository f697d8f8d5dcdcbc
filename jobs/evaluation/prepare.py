"""`admg-batch prepare dataset` of the three tasks: which of its options they take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from jobs.evaluation.hub_data import HUB, task_source

if TYPE_CHECKING:
    from jobs.sources import Source

_OF_TASKS = ("seed", "form")
_OF_OTHERS = ("subset", "id_column", "prompt_column", "template", "keep")


def is_task(ctx: click.Context, name: str) -> bool:
    """Whether a name is that of a task; options that it does not take are refused.

    A folder of that name here is no task but a data set.

    Raises:
        ValueError: such an option is given.
    """
    task = name in HUB and not Path(name).exists()
    for option in _OF_OTHERS if task else _OF_TASKS:
        if ctx.get_parameter_source(option) is not ParameterSource.DEFAULT:
            flag = f"--{option.replace('_', '-')}"
            whose = f"not for {name}, whose columns are fixed" if task else f"for {', '.join(HUB)}"
            raise ValueError(f"{flag} is given: it is {whose}")
    return task


def prepare_task(
    name: str, split: str | None, seed: int | None, form: str | None, limit: int | None
) -> Source:
    """The prompts of a task, told about while they are read.

    Raises:
        ValueError: as `task_source`.
    """
    click.echo(f"Reading {HUB[name].place} at {HUB[name].revision}", err=True)
    return task_source(
        name,
        split=split or "test",
        form="base" if form == "base" else "chat",
        seed=seed or 0,
        limit=limit,
        report=lambda line: click.echo(line, err=True),
    )
