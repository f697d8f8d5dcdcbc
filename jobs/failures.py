"""How a command ends: exit codes, one sentence for people, a traceback only where asked for."""

from __future__ import annotations

import errno
import re
import shlex
import traceback
from typing import IO, Any

import click

from jobs.console import printable
from jobs.options import ExampleGroup

EXIT_USAGE = 2
EXIT_ERROR_ROWS = 3
EXIT_INCOMPLETE = 4
EXIT_INTERRUPTED = 130

EXIT_CODES = """\
Exit codes:
  0    every row has a completion
  2    a mistake in the command, the job file or the input; nothing was started
  3    finished, and some rows are error rows, or bad shards were left out
  4    ended early, or another run holds the output; the same command goes on from what is there
  130  interrupted (Ctrl-C or SIGTERM); the same command goes on from what is committed
"""

_VERBOSE = "jobs.verbose"
_ARGV = "jobs.argv"


def shown(text: str) -> str:
    """Text fit for terminals and logs: without credentials in URIs, and without what steers them.

    What it says may stem from rows and models.
    """
    from pipeline.redaction import redacted

    return printable(redacted(text))


class Failure(click.ClickException):
    """A sentence for the user, and the exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence, without the usage lines that would bury it."""
        click.echo(f"Error: {shown(self.format_message())}", file=file, err=file is None)


class Main(ExampleGroup):
    """The command group: remembers the command line and turns exceptions into exit codes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments, for the sentence that says how to go on."""
        ctx.meta[_ARGV] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; `ValueError` is by our contract the user's mistake, in one sentence.

        What storage raises ends a command too, early rather than wrongly: the place is named.
        """
        from pipeline.errors import PipelineError

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (ValueError, click.ClickException, PipelineError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # who reads our output has gone: click ends without a word
            if ctx.meta.get(_VERBOSE) and not isinstance(error, click.UsageError):
                click.echo(shown(traceback.format_exc()), err=True)
            if isinstance(error, click.ClickException):
                raise
            if isinstance(error, OSError):
                code = EXIT_USAGE if isinstance(error, NotADirectoryError) else EXIT_INCOMPLETE
                raise Failure(_sentence(error), code) from error
            code = EXIT_INCOMPLETE if isinstance(error, PipelineError) else EXIT_USAGE
            raise Failure(str(error), code) from error


def _sentence(error: OSError) -> str:
    """What an error of storage says, without its number; of many lines the last is its cause."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return re.sub(r"^\[Errno \d+\] ", "", lines[-1].strip())


def command_line(ctx: click.Context) -> str:
    """The command that the user typed, ready for a shell."""
    return shown(shlex.join(["admg-batch", *ctx.meta.get(_ARGV, [])]))


def verbose_option(command: Any) -> Any:
    """`-v`: show the traceback of an error."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[_VERBOSE] = value

    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)


def is_verbose(ctx: click.Context) -> bool:
    """Whether `-v` was given."""
    return bool(ctx.meta.get(_VERBOSE))
