"""What a run is told: frozen values, validated where they are made.

Light on purpose: command lines import this for their help, so nothing here imports Ray, pyarrow
or torch. Every rejection is a `ValueError` of one sentence naming the field and what is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import inf
from typing import Literal

from admg.config import EngineConfig, SamplingParams
from admg.draft_rules import refuse
from pipeline.made_for import MadeFor
from pipeline.template import Template

PromptMode = Literal["raw", "chat", "template"]
OnLong = Literal["error", "truncate-left", "truncate-right"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
OnChanged = Literal["refuse", "recompute"]

_PARAMETERS = tuple(parameter.name for parameter in fields(SamplingParams))


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """How a row's columns become a prompt.

    - "raw": the text of `column` as it stands.
    - "template": `template` (its text, not a path) with `{name}` replaced by the row's column.
    - "chat": `column` holds the user's message, or a list of {role, content} messages; with a
      `template` its filled text is the user's message. The model's chat template does the rest.

    `on_long` decides what happens to a prompt that leaves no room for `max_tokens`: an error row,
    or tokens cut off at that end (in chat mode: off the longest message, never off the template).

    Raises:
        ValueError: a value outside its range, or options that contradict each other.
    """

    column: str = "prompt"
    mode: PromptMode = "raw"
    template: str | None = None
    system: str | None = None
    on_long: OnLong = "error"

    def __post_init__(self) -> None:
        modes = ("raw", "chat", "template")
        refuse(not self.column, "prompt.column", self.column, "the name of a column")
        refuse(self.mode not in modes, "prompt.mode", self.mode, "raw, chat or template")
        policies = ("error", "truncate-left", "truncate-right")
        refuse(self.on_long not in policies, "prompt.on_long", self.on_long, ", ".join(policies))
        missing = self.mode == "template" and self.template is None
        refuse(missing, "prompt.template", None, "given in template mode")
        unused = self.mode == "raw" and self.template is not None
        refuse(unused, "prompt.mode", self.mode, "template or chat where a template is given")
        lonely = self.system is not None and self.mode != "chat"
        refuse(lonely, "prompt.system", self.system, "left out unless prompt.mode is chat")
        if self.template is not None:
            Template.parse(self.template)

    @property
    def columns(self) -> tuple[str, ...]:
        """The input columns that the prompt is made of."""
        return (self.column,) if self.template is None else Template.parse(self.template).columns


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One job: input shards, output folder, model, prompts, the law and the machine's share.

    `input` holds files, folders or globs, each a path or any URI that pyarrow.fs understands.
    `actors` None takes what suits the machine (`pipeline.actors`).
    `gpus_per_actor` None takes 1 where the cluster has GPUs; a part of one needs a KV budget.
    `rows_per_block` rows are committed together, in one file; None takes what one actor does in a
    few minutes.

    A row that was in engines that died `max_crashes` times is decoded apart from others, and
    quarantined when it kills as many alone. A row may take `row_deadline_seconds`, and
    `token_deadline_seconds` for each token of its longest completion and for every ten of its
    prompt. A run in which nothing moves for `stall_seconds` ends (None: half an hour, or twice what
    the longest row may take).

    A row whose id is committed with another prompt is a mistake, or decoded again (`on_changed`);
    `retry_failed` decodes again what earlier runs left as error rows. At the end small files
    become files of up to `max_rows_per_file` rows (0: they stay as they are).

    `row_parameters` are sampling parameters that rows may have of their own, in input columns of
    these names. `allow_bad_shards` leaves out shards that cannot be used. Storage that throttles,
    hangs or is full is tried again for `storage_patience_seconds`. A share `audit` of the rows is
    decoded again plainly, to compare texts and times. `explain` asks for what the drafter "auto"
    went by to be shown at the end; it is kept in any case (`pipeline.choices`). An engine on CPUs
    computes with `threads` (None: the actors of a machine share its cores). `made_for` is the
    model that the drafting was calibrated for: another one is refused.

    Raises:
        ValueError: a value outside its range, by name.
    """

    input: tuple[str, ...]
    output: str
    model: str
    id_column: str = "id"
    keep: tuple[str, ...] = ()
    prompt: PromptConfig = field(default_factory=PromptConfig)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    engine: EngineConfig = field(default_factory=EngineConfig)
    actors: int | None = None
    gpus_per_actor: float | None = None
    dtype: Dtype = "auto"
    rows_per_block: int | None = None
    on_changed: OnChanged = "refuse"
    retry_failed: bool = False
    row_parameters: tuple[str, ...] = ()
    allow_bad_shards: bool = False
    storage_patience_seconds: float = 60.0
    max_rows_per_file: int = 100_000
    max_crashes: int = 2
    row_deadline_seconds: float = 300.0
    token_deadline_seconds: float = 2.0
    stall_seconds: float | None = None
    audit: float = 0.0
    explain: bool = False
    threads: int | None = None
    made_for: MadeFor | None = None

    def __post_init__(self) -> None:
        strings = isinstance(self.input, tuple) and all(isinstance(i, str) for i in self.input)
        refuse(not strings, "input", self.input, "a tuple of paths")
        refuse(not self.input or "" in self.input, "input", self.input, "at least one path")
        refuse(not self.output, "output", self.output, "a folder or a URI")
        refuse(not self.model, "model", self.model, "a folder with a checkpoint")
        refuse(not self.id_column, "id_column", self.id_column, "the name of a column")
        twice = len(set(self.keep)) < len(self.keep)
        refuse(twice, "keep", self.keep, "columns named once each")
        refuse(self.id_column in self.keep, "keep", self.keep, "without the id column")
        refuse(self.actors is not None and self.actors < 1, "actors", self.actors, "at least 1")
        refuse(
            self.gpus_per_actor is not None and not 0 <= self.gpus_per_actor < inf,
            "gpus_per_actor",
            self.gpus_per_actor,
            "0 or more",
        )
        self._refuse_shares()
        dtypes = ("auto", "float32", "bfloat16", "float16")
        refuse(self.dtype not in dtypes, "dtype", self.dtype, ", ".join(dtypes))
        policies = ("refuse", "recompute")
        refuse(self.on_changed not in policies, "on_changed", self.on_changed, ", ".join(policies))
        rows = self.max_rows_per_file
        refuse(rows < 0, "max_rows_per_file", rows, "0 or more")
        if self.rows_per_block is not None:
            refuse(self.rows_per_block < 1, "rows_per_block", self.rows_per_block, "at least 1")
        if self.threads is not None:
            refuse(self.threads < 1, "threads", self.threads, "at least 1")
        if self.stall_seconds is not None:
            refuse(self.stall_seconds <= 0, "stall_seconds", self.stall_seconds, "above 0")
        refuse(self.max_crashes < 1, "max_crashes", self.max_crashes, "at least 1")
        unknown = sorted(set(self.row_parameters) - set(_PARAMETERS))
        refuse(bool(unknown), "row_parameters", unknown, f"some of {', '.join(_PARAMETERS)}")
        repeated = len(set(self.row_parameters)) < len(self.row_parameters)
        refuse(repeated, "row_parameters", self.row_parameters, "parameters named once each")
        patience = self.storage_patience_seconds
        refuse(not patience >= 0, "storage_patience_seconds", patience, "0 or more")
        refuse(not 0 <= self.audit <= 1, "audit", self.audit, "a share of the rows, 0 to 1")
        plain = self.engine.draft.drafter == "none"
        refuse(self.audit > 0 and plain, "audit", self.audit, "0 where nothing is drafted")
        drafter = self.engine.draft.drafter
        right = f"false with the drafter {drafter!r}: auto alone has something to choose"
        refuse(self.explain and drafter != "auto", "explain", True, right)
        for name in ("row_deadline_seconds", "token_deadline_seconds"):
            # Not "at most 0": nan is neither.
            refuse(not getattr(self, name) > 0, name, getattr(self, name), "above 0")

    def _refuse_shares(self) -> None:
        """One model on one GPU, unless it is said how much of its memory each may take."""
        gpus = self.gpus_per_actor
        if gpus is None or gpus in (0, 1):
            return
        several = "0 or 1: an actor's model is on one GPU; --actors takes more of them"
        refuse(gpus > 1, "gpus_per_actor", gpus, several)
        alone = (
            "1: models that share a GPU share its bandwidth, and the first takes most of its free "
            "memory; to share it all the same, say with kv_budget what each may take"
        )
        refuse(self.engine.kv_budget_bytes is None, "gpus_per_actor", gpus, alone)

    @property
    def columns(self) -> tuple[str, ...]:
        """The input columns that the run reads, the id first, each once."""
        named = (self.id_column, *self.keep, *self.prompt.columns, *self.row_parameters)
        return tuple(dict.fromkeys(named))
