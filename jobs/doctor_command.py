"""`admg-batch doctor`: whether a run would work here, before it is tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from jobs.console import json_text
from jobs.failures import EXIT_USAGE, shown, verbose_option
from jobs.option_kinds import ExampleCommand
from jobs.submit_command import address_option

if TYPE_CHECKING:
    from jobs.doctor.finding import Finding

_EXAMPLE = """\
admg-batch doctor
admg-batch doctor --model /models/Llama-2-13b-chat-hf --path s3://bucket/prompts --load
admg-batch doctor --address http://head:8265 --json"""
_NOTES = """\
A path is tried by reading a file of it, and by writing a small one that is removed at once.

Exit codes:
  0  nothing is in the way
  2  something is: the lines that say "problem"
"""
_COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@click.option("--model", metavar="DIR", help="A model to look at: a folder, a URI, or demo.")
@click.option("--load", is_flag=True, help="Load it, decode a little, say which drafter pays.")
@click.option("--path", "paths", metavar="PATH", multiple=True, help="A place to try. Repeatable.")
@address_option()
@click.option("--no-probe", is_flag=True, help="Do not measure memory and arithmetic (seconds).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@verbose_option
@click.pass_context
def doctor(
    ctx: click.Context,
    model: str | None,
    load: bool,
    paths: tuple[str, ...],
    address: str | None,
    no_probe: bool,
    as_json: bool,
) -> None:
    """Say what is here, what can be reached, and what the engine would choose.

    Software, processors, memory, disks, devices and their speed; with --model whether it can be
    used, and how; with --path and --address whether these answer.
    """
    if load and model is None:
        raise ValueError("--load is given: it must come with --model")
    findings = []
    for finding in _findings(model, load, paths, address, not no_probe):
        findings.append(finding)
        if not as_json:
            _show(finding)
    problems = sum(f.state == "problem" for f in findings)
    if as_json:
        told = [f.to_dict() for f in findings]
        click.echo(json_text({"problems": problems, "findings": told}))
    if problems:
        ctx.exit(EXIT_USAGE)


def _findings(
    model: str | None, load: bool, paths: tuple[str, ...], address: str | None, probe: bool
) -> Iterator[Finding]:
    from jobs.doctor import machine, places
    from jobs.doctor import model as models

    yield machine.versions()
    yield machine.processors()
    memory, devices = machine.memory(), machine.devices()
    yield memory
    yield from machine.disks()
    yield devices
    if probe:
        yield machine.bandwidth(models.dtype())
    yield places.cluster(address)
    yield from map(places.path, paths)
    if model is not None:
        gpus = devices.facts["gpus"]
        free = gpus[0]["free_bytes"] if gpus else memory.facts["free_bytes"]
        yield from models.examine(model, free, load)


def _show(finding: Finding) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from jobs.terminal import terminal

    line = Table.grid(padding=(0, 1))
    line.add_column(width=7)
    line.add_column(width=15)
    line.add_column(overflow="fold")
    state = Text(finding.state, style=_COLOURS[finding.state])
    line.add_row(state, Text(finding.topic, style="bold"), Text(shown(finding.text)))
    terminal().print(Padding(line, 0))
