"""`admg-batch prepare`: one command for each kind of source."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from jobs.failures import shown, verbose_option
from jobs.mistakes import read_template
from jobs.options import ExampleCommand, ExampleGroup

if TYPE_CHECKING:
    from jobs.sources import Source


@click.group(cls=ExampleGroup, example="admg-batch prepare demo --output demo-prompts --limit 8")
def prepare() -> None:
    """Write prompt shards from what you have.

    A shard is a Parquet file with an id and a prompt in every row. Files that have a column of
    ids and one of prompts need no preparation.
    """


def _output_options(command: Any) -> Any:
    options = [
        click.option("--output", required=True, metavar="DIR", help="Folder for the shards."),
        click.option("--rows-per-shard", type=int, help="Rows of a file."),
        click.option("--limit", type=int, help="Take this many rows only."),
        click.option("--overwrite", is_flag=True, help="Replace the Parquet files of --output."),
    ]
    for option in reversed(options):
        command = option(command)
    return verbose_option(command)


def _column_options(command: Any) -> Any:
    options = [
        click.option(
            "--id-column",
            metavar="NAME",
            help="The rows' ids.  [default: id if there is one, else FILE:ROW]",
        ),
        click.option(
            "--prompt-column",
            metavar="NAME",
            default="prompt",
            help="The prompts.",
            show_default=True,
        ),
        click.option(
            "--template",
            metavar="FILE",
            help="A text file whose {column} fields make the prompt, instead of --prompt-column.",
        ),
        click.option(
            "--keep", metavar="NAME", multiple=True, help="A further column to keep. Repeatable."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _write(
    open_source: Callable[[], Source],
    output: str,
    *,
    rows_per_shard: int | None,
    limit: int | None,
    overwrite: bool,
    id_column: str | None = None,
    prompt_column: str = "prompt",
    template: str | None = None,
    keep: tuple[str, ...] = (),
) -> None:
    from jobs.prepare import Columns, write_shards

    text = None if template is None else read_template(template, "--template")
    written = write_shards(
        open_source(),
        Columns(id_column, prompt_column, text, keep),
        output,
        rows_per_shard=1000 if rows_per_shard is None else rows_per_shard,
        limit=limit,
        overwrite=overwrite,
    )
    click.echo(shown(f"{written.rows} prompts in {written.shards} shards: {output}"))
    click.echo(
        f"Next: admg-batch run --input {shlex.quote(output)} --output OUTPUT --model MODEL",
        err=True,
    )


@prepare.command(cls=ExampleCommand, example="admg-batch prepare demo --output demo-prompts")
@_output_options
@click.option("--max-chars", type=int, help="Cut longer topics after a paragraph.")
@click.option("--split", is_flag=True, help="Make further prompts of what is cut off.")
def demo(output: str, max_chars: int | None, split: bool, **shards: Any) -> None:
    """Prompts from Python's own documentation topics: real text, no network."""
    from jobs.demo_prompts import MAX_CHARS, SHARDS, demo_source

    longest = MAX_CHARS if max_chars is None else max_chars
    source = demo_source(shards.pop("limit"), longest, split)
    rows = sum(len(table) for part in source.parts for table in part.tables())
    if shards["rows_per_shard"] is None:
        shards["rows_per_shard"] = max(1, rows // SHARDS)  # at least so many shards
    _write(lambda: source, output, limit=None, keep=("topic",), **shards)


@prepare.command(
    cls=ExampleCommand,
    example="admg-batch prepare parquet articles/ --template summarise.txt --output prompts",
)
@click.argument("paths", nargs=-1, required=True)
@_column_options
@_output_options
def parquet(paths: tuple[str, ...], output: str, **rest: Any) -> None:
    """Prompts from Parquet files, folders or globs."""
    from jobs import sources

    _write(lambda: sources.parquet(paths), output, **rest)


@prepare.command(
    cls=ExampleCommand,
    example="admg-batch prepare jsonl news.jsonl.gz --id-column url --prompt-column text "
    "--output prompts",
)
@click.argument("paths", nargs=-1, required=True)
@_column_options
@_output_options
def jsonl(paths: tuple[str, ...], output: str, **rest: Any) -> None:
    """Prompts from JSON lines (.jsonl, .jsonl.gz) or CSV (.csv, .csv.gz).

    A path that ends in .csv or .csv.gz is read as CSV with a header line.
    """
    from jobs import sources

    tabular = [p for p in paths if p.endswith((".csv", ".csv.gz"))]
    if tabular and len(tabular) < len(paths):
        raise ValueError(f"PATHS mixes CSV ({tabular[0]}) with JSON lines: prepare them one by one")
    _write(lambda: (sources.csv_files if tabular else sources.jsonl)(paths), output, **rest)


@prepare.command(
    cls=ExampleCommand,
    example="admg-batch prepare dataset abisee/cnn_dailymail --subset 3.0.0 --split test "
    "--prompt-column article --limit 100 --output prompts\n"
    "admg-batch prepare dataset xsum --limit 100 --output data/xsum",
)
@click.argument("name")
@click.option("--subset", metavar="NAME", help="The dataset's configuration.")
@click.option(
    "--split", metavar="NAME", help="The split.  [default: train; of the three tasks test]"
)
@click.option("--seed", type=int, help="Of the three tasks: the order of the rows.  [default: 0]")
@click.option(
    "--form",
    type=click.Choice(["chat", "base"]),
    help="Of the three tasks: prompts for --chat, or texts for base models.  [default: chat]",
)
@_column_options
@_output_options
@click.pass_context
def dataset(
    ctx: click.Context,
    name: str,
    subset: str | None,
    split: str | None,
    seed: int | None,
    form: str | None,
    output: str,
    **rest: Any,
) -> None:
    """Prompts from a Hugging Face dataset: a name on the hub or a local folder.

    The names cnn_dailymail, xsum and openai_humaneval alone are the three tasks of bench paper:
    fixed revisions, rows in a seeded order, the columns id, prompt, text, reference (and for code
    test, entry_point).
    """
    from jobs import sources
    from jobs.evaluation.prepare import is_task, prepare_task
    from jobs.prepare import shards_in

    if is_task(ctx, name):
        shards_in(output, rest["overwrite"])
        made = prepare_task(name, split, seed, form, rest["limit"])
        kept = tuple(n for n in made.schema.names if n not in ("id", "prompt"))
        shards = {n: rest[n] for n in ("rows_per_shard", "limit", "overwrite")}
        return _write(lambda: made, output, keep=kept, **shards)
    _write(lambda: sources.dataset(name, subset=subset, split=split or "train"), output, **rest)


@prepare.command(
    "full-heads",
    cls=ExampleCommand,
    example="admg-batch prepare full-heads demo --output /tmp/full-heads\n"
    "admg-batch bench engine --model /tmp/full-heads --workload long-summarization --batch 8",
)
@click.argument("model")
@click.option("--output", required=True, metavar="DIR", help="A new folder for the checkpoint.")
@verbose_option
def full_heads_command(model: str, output: str) -> None:
    """A copy of MODEL with a KV head for every query head, to measure with.

    It computes the same and reads more keys and values, as large models do. MODEL is a Hugging Face
    folder, or demo.
    """
    from pathlib import Path

    from jobs.demo_model import DemoModelError, demo_model
    from jobs.failures import Failure
    from jobs.full_heads import full_heads

    try:
        source = demo_model() if model == "demo" else Path(model)
    except DemoModelError as error:
        raise Failure(str(error)) from error
    times = full_heads(source, Path(output))
    click.echo(f"Wrote {output}: each KV head {times} times")
