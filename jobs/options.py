"""The options of `admg-batch run`, in groups that --help shows under their own headings.

Every option's name is the key of the job file, and none has a default of its own: what is not
given comes from the job file, then from the configuration classes.
"""

from __future__ import annotations

import click

from admg.config import EngineConfig, SamplingParams
from jobs.draft_options import draft_options
from jobs.option_kinds import ExampleCommand, ExampleGroup, apply, listing, names, option, switch
from pipeline.config import PromptConfig, RunConfig

__all__ = ["ExampleCommand", "ExampleGroup", "run_options", "sample_options"]

_LAW, _ENGINE = SamplingParams(), EngineConfig()
_PROMPT, _RUN = PromptConfig(), RunConfig(input=("-",), output="-", model="-")

DATA, PROMPT, LAW = "Input and output", "Prompts", "Sampling and stopping"
ENGINE = "Engine and cluster"

_input = [
    option(DATA, "--config", metavar="FILE", help="A job file (TOML); options override it."),
    option(
        DATA,
        "--input",
        metavar="PATH",
        multiple=True,
        callback=listing,
        help="Parquet shards: a file, folder, glob or URI (s3://, gs://, hdfs://). Repeatable.",
    ),
]

_output = option(
    DATA, "--output", metavar="DIR", help="Folder or URI for the result; resumes there."
)

_model = [
    option(
        DATA,
        "--model",
        metavar="DIR",
        help="A Hugging Face folder or URI (s3://, gs://, hf://ORG/NAME), copied to each machine "
        "once; or demo.",
    ),
    option(
        DATA, "--id-column", metavar="NAME", help="The rows' unique ids.", default=_RUN.id_column
    ),
]

_data = [
    *_input,
    _output,
    *_model,
    option(
        DATA,
        "--keep",
        metavar="NAME",
        multiple=True,
        callback=listing,
        help="An input column to carry into the output. Repeatable.",
    ),
    option(
        DATA,
        "--on-changed",
        type=click.Choice(["refuse", "recompute"]),
        help="What to do with an id that the output holds with another prompt.",
        default=_RUN.on_changed,
    ),
    option(
        DATA,
        "--retry-failed",
        is_flag=True,
        callback=switch,
        help="Decode again what earlier runs left as error rows.",
    ),
    option(
        DATA,
        "--max-rows-per-file",
        type=int,
        help="At the end small files become files of up to this many rows; 0 leaves them.",
        default=_RUN.max_rows_per_file,
    ),
    option(
        DATA,
        "--allow-bad-shards",
        is_flag=True,
        callback=switch,
        help="Leave out shards that cannot be used, and exit with 3.",
    ),
    option(
        DATA,
        "--storage-patience",
        metavar="SECONDS",
        type=float,
        help="How long storage that throttles, hangs or is full is tried again.",
        default=f"{_RUN.storage_patience_seconds:g}",
    ),
]

_prompt = [
    option(PROMPT, "--prompt-column", metavar="NAME", help="The prompts.", default=_PROMPT.column),
    option(
        PROMPT,
        "--chat/--raw",
        help="Put the prompt into the model's chat template, or take it as it stands.",
        default="raw",
    ),
    option(
        PROMPT,
        "--template",
        metavar="FILE",
        help="A text file whose {column} fields make the prompt. With --chat: the user's message.",
    ),
    option(
        PROMPT,
        "--on-long-prompt",
        type=click.Choice(["error", "truncate-left", "truncate-right"]),
        help="What to do with a prompt that leaves no room: an error row, or cut that end.",
        default=_PROMPT.on_long,
    ),
]

_lengths = [
    option(LAW, "--max-tokens", type=int, help="Longest completion.", default=_LAW.max_tokens),
    option(LAW, "--min-tokens", type=int, help="No stop before this.", default=_LAW.min_tokens),
]

_tokens = [
    option(LAW, "--temperature", type=float, help="0 is greedy.", default=_LAW.temperature),
    option(LAW, "--top-p", type=float, help="1 is off.", default=_LAW.top_p),
    option(LAW, "--top-k", type=int, help="0 is off.", default=_LAW.top_k),
    option(LAW, "--min-p", type=float, help="0 is off.", default=_LAW.min_p),
    option(
        LAW, "--repetition-penalty", type=float, help="1 is off.", default=_LAW.repetition_penalty
    ),
]

_row_parameters = option(
    LAW,
    "--row-parameters",
    metavar="NAMES",
    callback=names,
    help="Of these, as in max_tokens,seed, rows may have their own in columns named so.",
)

_stops = [
    option(LAW, "--seed", type=int, help="Names the noise of the job.", default=_LAW.seed),
    option(
        LAW,
        "--stop",
        metavar="TEXT",
        multiple=True,
        callback=listing,
        help="End before this text. Repeatable.",
    ),
    option(
        LAW,
        "--stop-token-id",
        type=int,
        multiple=True,
        callback=listing,
        help="End at this token. Repeatable.",
    ),
    option(
        LAW,
        "--ignore-eos",
        is_flag=True,
        callback=switch,
        help="Go on past the model's own end token.",
    ),
]

_engine = [
    option(
        ENGINE,
        "--max-num-seqs",
        type=int,
        help="Sequences decoded together by one actor.",
        default=_ENGINE.max_num_seqs,
    ),
    option(
        ENGINE,
        "--kv-budget",
        metavar="SIZE",
        help="Memory of the KV cache, as 2GiB or 500MB.  [default: a share of the free memory]",
    ),
    option(
        ENGINE,
        "--gpu-memory-utilization",
        metavar="SHARE",
        type=float,
        help="Share of a GPU's memory that one actor fills, weights included.",
        default=_ENGINE.gpu_memory_utilization,
    ),
    option(
        ENGINE,
        "--max-model-len",
        type=int,
        help="Longest prompt with completion.  [default: the model's]",
    ),
    option(
        ENGINE,
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        help="Type of the weights and the arithmetic.",
        default=_RUN.dtype,
    ),
    option(
        ENGINE,
        "--actors",
        type=int,
        help="Processes that each hold the model.  [default: 1; of a small model on a machine "
        "without GPUs up to 4, unless --threads is given]",
    ),
    option(
        ENGINE,
        "--gpus-per-actor",
        type=float,
        help="A part of one needs --kv-budget.  [default: 1 where the cluster has GPUs, else 0]",
    ),
    option(
        ENGINE,
        "--threads",
        type=int,
        help="CPU threads of one actor.  [default: its share of the machine's cores]",
    ),
    option(
        ENGINE,
        "--rows-per-block",
        type=int,
        help="Rows that are committed together.  [default: what takes a few minutes at most]",
    ),
    option(
        ENGINE,
        "--max-crashes",
        type=int,
        help="Deaths of an engine after which its rows are suspected.",
        default=_RUN.max_crashes,
    ),
    option(
        ENGINE,
        "--row-deadline-seconds",
        type=float,
        help="A row that takes longer is an error row; and for each of its tokens:",
        default=_RUN.row_deadline_seconds,
    ),
    option(
        ENGINE,
        "--token-deadline-seconds",
        type=float,
        help="Seconds more for each token of its longest completion.",
        default=_RUN.token_deadline_seconds,
    ),
]

_law = [*_lengths, *_tokens, _row_parameters, *_stops]
# Of a job, what says which prompts it has, and their law.
sample_options = apply([*_input, *_model, *_prompt, *_tokens, *_stops])
run_options = apply([*_data, *_prompt, *_law, *draft_options, *_engine])
