"""What a user gave of a command's options, and an option that the bench's commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder with the workloads' files.  [default: ../shared/data beside the checkout]",
)


def only_given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The options that have a value: no switch that is off, nothing repeatable without one."""
    # By identity: a 0 was given, and it equals False.
    return {k: v for k, v in flags.items() if v is not None and v is not False and v != ()}
