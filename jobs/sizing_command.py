"""`admg-batch sizing`: sequences and tokens per second by model, GPU and context, computed."""

from __future__ import annotations

import json

import click

from jobs.failures import verbose_option
from jobs.option_kinds import ExampleCommand

_EXAMPLE = """\
admg-batch sizing
admg-batch sizing --model /models/Llama-2-13b-chat-hf --gpu H200 --context 2048 --json"""
_NOTES = """\
A cell is "sequences / tokens per second": how many sequences of that context fit into the GPU's
memory beside bf16 weights, and the most that plain decoding of so many can reach, from the bytes
that a step reads and the GPU's bandwidth. Nothing is measured, and prefill is not in it.
"""


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@click.option(
    "--model",
    "models",
    metavar="NAME",
    multiple=True,
    help="A name of the table or a Hugging Face folder. Repeatable.  [default: all names]",
)
@click.option("--gpu", "gpus", metavar="NAME", multiple=True, help="Repeatable.  [default: all]")
@click.option(
    "--context",
    "contexts",
    metavar="TOKENS",
    type=click.IntRange(min=1),
    multiple=True,
    help="Prompt and completion. Repeatable.  [default: 1024, 2048, 4096]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@verbose_option
def sizing(
    models: tuple[str, ...], gpus: tuple[str, ...], contexts: tuple[int, ...], as_json: bool
) -> None:
    """Compute what fits on a GPU, and how fast it can be at best.

    Set --max-num-seqs of a run to the first number, or less.
    """
    from pathlib import Path

    from admg.families import read_model_config
    from jobs.devices import GPUS
    from jobs.sizing import CONTEXTS, MODELS, known_model, markdown, table

    unknown = [gpu for gpu in gpus if gpu not in GPUS]
    if unknown:
        raise ValueError(f"--gpu is {unknown[0]!r}: it must be one of {', '.join(GPUS)}")
    shapes = {
        Path(m).name: read_model_config(m) if Path(m).is_dir() else known_model(m)
        for m in models or MODELS
    }
    sizes = table(shapes, [GPUS[g] for g in gpus or GPUS], contexts or CONTEXTS)
    if as_json:
        click.echo(json.dumps({"sizes": [s.to_dict() for s in sizes]}))
    else:
        click.echo(markdown(sizes))
