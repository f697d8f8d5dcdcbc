"""`admg-batch completion`: the shell's part of completing commands and options with TAB."""

from __future__ import annotations

import click

from jobs.failures import Failure, verbose_option
from jobs.option_kinds import ExampleCommand

_PROGRAM = "admg-batch"
_VARIABLE = "_ADMG_BATCH_COMPLETE"
_EXAMPLE = f"{_PROGRAM} completion bash"
_NOTES = f"""\
To have it in every new shell:
  bash  {_PROGRAM} completion bash > ~/.local/share/bash-completion/completions/{_PROGRAM}
  zsh   {_PROGRAM} completion zsh > "${{fpath[1]}}/_{_PROGRAM}"
  fish  {_PROGRAM} completion fish > ~/.config/fish/completions/{_PROGRAM}.fish
"""


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@verbose_option
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in your shell.

    For this shell alone: eval "$(admg-batch completion bash)".
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise Failure(f"shell is {shell!r}: it must be bash, zsh or fish")
    click.echo(kind(ctx.find_root().command, {}, _PROGRAM, _VARIABLE).source())
