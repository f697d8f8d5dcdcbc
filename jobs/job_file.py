"""The job file: TOML whose keys are the options' names, checked by pydantic.

Relative paths in it are relative to the folder that it lies in. What is wrong is named with its
place, the table and the key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from admg.config import Drafter, DraftWeights, Verification
from jobs.mistakes import describe
from jobs.published_sets import PREFIX

T = TypeVar("T", bound=BaseModel)


class Table(BaseModel):
    """No guessing: "64" is no number, 1 is no boolean, nan is none, an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class PromptTable(Table):
    prompt_column: str | None = None
    chat: bool | None = None
    template: str | None = None
    system: str | None = None
    on_long_prompt: Literal["error", "truncate-left", "truncate-right"] | None = None


class SamplingTable(Table):
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_id: list[int] | None = None
    ignore_eos: bool | None = None


class OwnDraftTable(Table):
    """How the model drafts for itself: what a plan file can say."""

    draft_tokens: int | None = None
    drop_layers: int | None = None
    similarity_threshold: float | None = None
    drop_quantile: float | None = None
    drop_attention: list[int] | None = None
    drop_mlps: list[int] | None = None
    window_share: float | Literal["auto"] | None = None
    window_threshold: float | None = None
    window: int | None = None
    exit_threshold: float | None = None
    exit_every: int | None = None
    exit_match_decay: float | None = None
    exit_target: float | None = None
    exit_step: float | None = None
    exit_threshold_decay: float | None = None
    exit_carry: bool | None = None
    similarity: Literal["mean", "last", "decay"] | None = None
    hole_filling: bool | None = None
    remake_after: int | None = None
    remake_every: int | None = None
    draft_weights: DraftWeights | None = None
    lookup_tail: int | None = None


class DraftTable(OwnDraftTable):
    plan: str | None = None
    plan_any_model: bool | None = None
    drafter: Drafter | None = None
    verification: Verification | None = None
    lookup_store_tokens: int | None = None
    audit: float | None = None
    explain: bool | None = None


class EngineTable(Table):
    max_num_seqs: int | None = None
    kv_budget: str | int | None = None
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None
    threads: int | None = None
    rows_per_block: int | None = None
    max_crashes: int | None = None
    row_deadline_seconds: float | None = None
    token_deadline_seconds: float | None = None


class AnyJob(Table):
    """What stands in the job files of all kinds."""

    output: str | None = None
    model: str | None = None
    id_column: str | None = None
    keep: list[str] | None = None
    on_changed: Literal["refuse", "recompute"] | None = None
    retry_failed: bool | None = None
    allow_bad_shards: bool | None = None
    storage_patience: float | None = None
    max_rows_per_file: int | None = None
    sampling: SamplingTable = SamplingTable()
    draft: DraftTable = DraftTable()
    engine: EngineTable = EngineTable()


class JobFile(AnyJob):
    """The keys at the top of a job file, and its tables."""

    input: list[str] | None = None
    row_parameters: list[str] | None = None
    prompt: PromptTable = PromptTable()


COMMON_TABLES: dict[str, type[BaseModel]] = {
    "sampling": SamplingTable,
    "draft": DraftTable,
    "engine": EngineTable,
}
TABLES: dict[str, type[BaseModel]] = {"prompt": PromptTable, **COMMON_TABLES}


def option_names() -> Iterator[str]:
    """Every key that a job file can hold and an option can override."""
    yield from (k for k in JobFile.model_fields if k not in TABLES)
    for table in TABLES.values():
        yield from table.model_fields


def read_job_file(path: str) -> JobFile:
    """Read and check a job file; its relative paths are made relative to where it lies.

    Raises:
        ValueError: what is wrong and where, every mistake on its own line.
    """
    return _relative_to(read_toml(path, JobFile, TABLES), path)


def read_toml(
    path: str, model: type[T], tables: Mapping[str, type[BaseModel]], kind: str = "job file"
) -> T:
    """Read a TOML file and check it against a model, whose tables are named for the messages.

    Raises:
        ValueError: what is wrong and where, every mistake on its own line.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the {kind} {path} cannot be read: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not TOML that can be read: it is nested too deep") from error
    except ValueError as error:  # not only of TOML: a number of too many digits is Python's
        raise ValueError(f"{path} is not TOML: {_brief(error)}") from error
    try:
        return model.model_validate(data)
    except ValidationError as error:
        keys = {"": list(model.model_fields)}
        keys |= {name: list(table.model_fields) for name, table in tables.items()}
        raise ValueError("\n".join(describe(path, error.errors(), keys))) from error


def _brief(error: ValueError) -> str:
    """What is wrong, without what Python advises to whoever programs."""
    return str(error).split("; use sys.")[0]


def place_beside(path: str, value: str) -> str:
    """A path that a job file names, seen from where the command runs."""
    free = "://" in value or value.startswith("~")
    return value if free else str(Path(path).parent / value)


def plan_beside(path: str, draft: DraftTable) -> DraftTable:
    """A table whose plan, if it is a file, is seen from where the command runs."""
    if draft.plan is None or draft.plan.startswith(PREFIX):
        return draft
    return draft.model_copy(update={"plan": place_beside(path, draft.plan)})


def _relative_to(job: JobFile, path: str) -> JobFile:
    update: dict[str, Any] = {"draft": plan_beside(path, job.draft)}
    if job.input is not None:
        update["input"] = [place_beside(path, i) for i in job.input]
    if job.output is not None:
        update["output"] = place_beside(path, job.output)
    if job.model is not None and job.model != "demo":
        update["model"] = place_beside(path, job.model)
    if job.prompt.template is not None:
        template = place_beside(path, job.prompt.template)
        update["prompt"] = job.prompt.model_copy(update={"template": template})
    return job.model_copy(update=update)
