"""Kinds of options and commands: options under headings, commands whose help has an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

_COMPLETED = {"DIR": "dir", "FILE": "file", "PATH": "file"}


class GroupedOption(click.Option):
    """An option that knows its heading."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        """Files and folders where the placeholder says so."""
        kind = _COMPLETED.get(str(self.metavar))
        if kind is not None:
            return [CompletionItem(incomplete, type=kind)]
        return super().shell_complete(ctx, incomplete)


class _WithExample(click.Command):
    """A command whose help ends with an example, kept as it was written, and notes."""

    def __init__(self, *args: Any, example: str = "", notes: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example, self.notes = example, notes

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, then the notes."""
        if self.example:
            lines = "".join(f"  {line}\n" for line in self.example.strip().splitlines())
            formatter.write(f"\nExample:\n{lines}")
        if self.notes:
            formatter.write(f"\n{self.notes}")


class ExampleGroup(_WithExample, click.Group):
    """A group of commands with an example."""


class ExampleCommand(_WithExample):
    """A command with an example, whose options stand under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options heading by heading, in the order of their declaration."""
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                heading = getattr(parameter, "group", "Options")
                headings.setdefault(heading, []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option(group: str, *names: str, help: str, default: object = None, **kwargs: Any) -> Any:
    if default is not None:
        help = f"{help}  [default: {default}]"
    return click.option(*names, cls=GroupedOption, group=group, help=help, default=None, **kwargs)


def apply(options: list[Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def listing(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    return list(value) if value else None


def names(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Names between commas."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def share(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """A number, or auto."""
    if value is None or value == "auto":
        return value
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} must be a share, 0 to 1, or auto") from None


def layers(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Numbers of layers between commas."""
    try:
        return None if value is None else [int(layer) for layer in value.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{value!r} must be numbers of layers between commas, as 8,9"
        ) from None


def switch(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    return True if value else None
