"""`admg-batch prepare widened`: its options, and nothing heavy before the body."""

from __future__ import annotations

import click

from jobs.failures import verbose_option
from jobs.option_kinds import ExampleCommand

_EXAMPLE = """\
admg-batch prepare widened --shape llama-2-13b --output /data/widened-13b
admg-batch prepare widened --shape 1152x18x6x128x3072 --dtype float32 --output widened
admg-batch bench gpu --model /data/widened-13b"""


@click.command(cls=ExampleCommand, example=_EXAMPLE)
@click.option(
    "--shape",
    required=True,
    metavar="NAME",
    help="llama-2-13b, codellama-13b, or HIDDENxHEADSxKVHEADSxHEADSIZExMLP.",
)
@click.option("--model", metavar="DIR", default="demo", show_default=True, help="What to widen.")
@click.option("--output", required=True, metavar="DIR", help="A folder for the checkpoint.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32", "float16"]),
    default="bfloat16",
    show_default=True,
    help="Of the stored weights.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="That computes.")
@verbose_option
def widened(shape: str, model: str, output: str, dtype: str, seed: int, device: str) -> None:
    """A copy of a model that computes the same with the cost of a larger one.

    Hidden size, heads, head size and MLP become those of the shape; layers and vocabulary stay. So
    a real model's acceptance is measured at a large one's cost. For measuring, not for use. The
    same command goes on with what was interrupted.
    """
    from pathlib import Path

    import torch

    from jobs.demo_model import DemoModelError, demo_model
    from jobs.failures import Failure
    from jobs.widened import parse_shape, widen_checkpoint

    sizes = parse_shape(shape)
    try:
        source = demo_model() if model == "demo" else Path(model)
    except DemoModelError as error:
        raise Failure(str(error)) from error
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device is {device!r}: it must be cpu, torch sees no CUDA device here")

    def say(done: int, files: int) -> None:
        click.echo(f"widening: {done} of {files} files", err=True)

    kind: torch.dtype = getattr(torch, dtype)
    made = widen_checkpoint(source, Path(output), sizes, say, dtype=kind, seed=seed, device=device)
    click.echo(
        f"Wrote {output}: {made.parameters / 1e9:.2f} billion parameters, {made.layers} layers as "
        "before"
    )
