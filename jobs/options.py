"""The options of `admg-batch run`, in groups that --help shows under their own headings.

Every option's name is the key of the job file, and none has a default of its own: what is not
given comes from the job file, then from the configuration classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from admg.config import DraftConfig, EngineConfig, SamplingParams
from pipeline.config import PromptConfig, RunConfig

_LAW, _DRAFT, _ENGINE = SamplingParams(), DraftConfig(), EngineConfig()
_PROMPT, _RUN = PromptConfig(), RunConfig(input=("-",), output="-", model="-")

DATA, PROMPT, LAW = "Input and output", "Prompts", "Sampling and stopping"
DRAFT = "Drafting (for speed; the text stays the same unless --verification token)"
ENGINE = "Engine and cluster"


class GroupedOption(click.Option):
    """An option that knows its heading."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


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


def _option(group: str, *names: str, help: str, default: object = None, **kwargs: Any) -> Any:
    if default is not None:
        help = f"{help}  [default: {default}]"
    return click.option(*names, cls=GroupedOption, group=group, help=help, default=None, **kwargs)


def _apply(options: list[Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _listing(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    return list(value) if value else None


def _switch(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    return True if value else None


_data = [
    _option(DATA, "--config", metavar="FILE", help="A job file (TOML); options override it."),
    _option(
        DATA,
        "--input",
        metavar="PATH",
        multiple=True,
        callback=_listing,
        help="Parquet shards: a file, folder, glob or URI (s3://, gs://, hdfs://). Repeatable.",
    ),
    _option(DATA, "--output", metavar="DIR", help="Folder or URI for the result; resumes there."),
    _option(
        DATA, "--model", metavar="DIR", help="A Hugging Face folder, or demo for the demo model."
    ),
    _option(
        DATA, "--id-column", metavar="NAME", help="The rows' unique ids.", default=_RUN.id_column
    ),
    _option(
        DATA,
        "--keep",
        metavar="NAME",
        multiple=True,
        callback=_listing,
        help="An input column to carry into the output. Repeatable.",
    ),
    _option(
        DATA,
        "--on-changed",
        type=click.Choice(["refuse", "recompute"]),
        help="What to do with an id that the output holds with another prompt.",
        default=_RUN.on_changed,
    ),
    _option(
        DATA,
        "--retry-failed",
        is_flag=True,
        callback=_switch,
        help="Decode again what earlier runs left as error rows.",
    ),
    _option(
        DATA,
        "--max-rows-per-file",
        type=int,
        help="At the end small files become files of up to this many rows; 0 leaves them.",
        default=_RUN.max_rows_per_file,
    ),
]

_prompt = [
    _option(PROMPT, "--prompt-column", metavar="NAME", help="The prompts.", default=_PROMPT.column),
    _option(
        PROMPT,
        "--chat/--raw",
        help="Put the prompt into the model's chat template, or take it as it stands.",
        default="raw",
    ),
    _option(
        PROMPT,
        "--template",
        metavar="FILE",
        help="A text file whose {column} fields make the prompt. With --chat: the user's message.",
    ),
    _option(
        PROMPT,
        "--on-long-prompt",
        type=click.Choice(["error", "truncate-left", "truncate-right"]),
        help="What to do with a prompt that leaves no room: an error row, or cut that end.",
        default=_PROMPT.on_long,
    ),
]

_law = [
    _option(LAW, "--max-tokens", type=int, help="Longest completion.", default=_LAW.max_tokens),
    _option(LAW, "--min-tokens", type=int, help="No stop before this.", default=_LAW.min_tokens),
    _option(LAW, "--temperature", type=float, help="0 is greedy.", default=_LAW.temperature),
    _option(LAW, "--top-p", type=float, help="1 is off.", default=_LAW.top_p),
    _option(LAW, "--top-k", type=int, help="0 is off.", default=_LAW.top_k),
    _option(LAW, "--min-p", type=float, help="0 is off.", default=_LAW.min_p),
    _option(
        LAW, "--repetition-penalty", type=float, help="1 is off.", default=_LAW.repetition_penalty
    ),
    _option(LAW, "--seed", type=int, help="Names the noise of the job.", default=_LAW.seed),
    _option(
        LAW,
        "--stop",
        metavar="TEXT",
        multiple=True,
        callback=_listing,
        help="End before this text. Repeatable.",
    ),
    _option(
        LAW,
        "--stop-token-id",
        type=int,
        multiple=True,
        callback=_listing,
        help="End at this token. Repeatable.",
    ),
    _option(
        LAW,
        "--ignore-eos",
        is_flag=True,
        callback=_switch,
        help="Go on past the model's own end token.",
    ),
]

_draft = [
    _option(
        DRAFT,
        "--drafter",
        type=click.Choice(["admg", "none"]),
        help="Self-speculation, or plain decoding.",
        default=_DRAFT.drafter,
    ),
    _option(DRAFT, "--draft-tokens", type=int, help="Longest draft.", default=_DRAFT.draft_tokens),
    _option(DRAFT, "--drop-layers", type=int, help="Drop this many attention layers."),
    _option(
        DRAFT,
        "--similarity-threshold",
        type=float,
        help="Drop attention layers whose similarity is this or above.",
    ),
    _option(
        DRAFT,
        "--drop-quantile",
        type=float,
        help="Drop this share of the attention layers.",
        default=_DRAFT.drop.quantile,
    ),
    _option(
        DRAFT,
        "--exit-threshold",
        type=float,
        help="End a draft below this confidence; adapts by itself.  [default: off]",
    ),
    _option(
        DRAFT,
        "--similarity",
        type=click.Choice(["mean", "last", "decay"]),
        help="How the prompt's tokens count in a layer's similarity.",
        default=_DRAFT.similarity,
    ),
    _option(
        DRAFT,
        "--verification",
        type=click.Choice(["shared", "token"]),
        help="Shared noise (same text as plain decoding), or rejection (same law only).",
        default=_DRAFT.verification,
    ),
]

_engine = [
    _option(
        ENGINE,
        "--max-num-seqs",
        type=int,
        help="Sequences decoded together by one actor.",
        default=_ENGINE.max_num_seqs,
    ),
    _option(
        ENGINE,
        "--kv-budget",
        metavar="SIZE",
        help="Memory of the KV cache, as 2GiB or 500MB.  [default: a share of the free memory]",
    ),
    _option(
        ENGINE,
        "--max-model-len",
        type=int,
        help="Longest prompt with completion.  [default: the model's]",
    ),
    _option(
        ENGINE,
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        help="Type of the weights and the arithmetic.",
        default=_RUN.dtype,
    ),
    _option(
        ENGINE,
        "--actors",
        type=int,
        help="Processes that each hold the model.",
        default=_RUN.actors,
    ),
    _option(
        ENGINE,
        "--gpus-per-actor",
        type=float,
        help="[default: 1 where the cluster has GPUs, else 0]",
    ),
    _option(
        ENGINE,
        "--rows-per-block",
        type=int,
        help="Rows that are committed together, as one file.",
        default=_RUN.rows_per_block,
    ),
]

run_options = _apply([*_data, *_prompt, *_law, *_draft, *_engine])
