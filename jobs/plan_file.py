"""Plan files: how to draft, and what it was made from, as a small TOML file.

`admg-batch calibrate` writes them, `run --plan`, job files and the bench take them. Their table
[draft] has the keys of a job file's, of those that say how the model drafts for itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jobs.job_file import OwnDraftTable, Table, read_toml
from jobs.published_sets import PREFIX, SOURCE, published_set
from pipeline.home import local_path
from pipeline.made_for import MadeFor


class ModelTable(Table):
    """The model that the plan was made for; the digests tell it from others."""

    name: str
    layers: int
    config: str | None = None
    weights: str | None = None


class MadeTable(Table):
    """Where the plan comes from; nothing of it changes what a run does."""

    by: str | None = None
    command: str | None = None
    date: str | None = None
    version: str | None = None
    input: list[str] | None = None
    prompts: int | None = None
    prompts_digest: str | None = None
    completion_tokens: int | None = None
    seed: int | None = None
    trials: int | None = None
    objective: str | None = None
    value: float | None = None
    tokens_per_pass: float | None = None
    draft_acceptance_rate: float | None = None
    jaccard: float | None = None
    notes: str | None = None


class PlanFile(Table):
    """A whole plan file."""

    draft: OwnDraftTable
    model: ModelTable | None = None
    made: MadeTable = MadeTable()

    def values(self) -> dict[str, Any]:
        """What it says of [draft], by option name."""
        return self.draft.model_dump(exclude_none=True)

    def made_for(self, name: str) -> MadeFor | None:
        """The model that it was made for, if it says so; `name` is the plan's own."""
        if self.model is None:
            return None
        m = self.model
        return MadeFor(Path(name).name, m.name, m.layers, m.config, m.weights)

    def to_toml(self) -> str:
        """The file's text."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(exclude_none=True))


def read_plan(name: str) -> PlanFile:
    """A plan file by its path, or a published set by its name (draft-verify:llama-2-13b).

    Raises:
        ValueError: it cannot be read, or what is wrong in it, every mistake on its own line.
    """
    if name.startswith(PREFIX):
        return _published(name)
    tables: dict[str, type[BaseModel]] = {
        "draft": OwnDraftTable,
        "model": ModelTable,
        "made": MadeTable,
    }
    plan = read_toml(str(local_path(name)), PlanFile, tables, "plan file")
    if plan.model is not None:
        _check_layers(name, plan.values(), plan.model.layers)
    return plan


def is_file(name: str) -> bool:
    """Whether a plan's name is a path, and not that of a published set."""
    return not name.startswith(PREFIX)


def check_model(name: str, folder: str) -> None:
    """Refuse a model in a folder that a plan was not made for.

    Raises:
        ValueError: it is another one, or the plan or the model cannot be read.
    """
    from admg.families import read_model_config
    from pipeline.fingerprint import model_identity

    made_for = read_plan(name).made_for(name)
    if made_for is not None:
        layers = read_model_config(folder).num_layers
        made_for.check(Path(folder).name, layers, model_identity(folder))


def _published(name: str) -> PlanFile:
    found = published_set(name)
    # The authors' settings of their experiments: drafts of up to 12 tokens, exit from 0.6 on.
    draft = OwnDraftTable(
        drop_attention=list(found.attention),
        drop_mlps=list(found.mlps),
        draft_tokens=12,
        exit_threshold=0.6,
        hole_filling=False,
    )
    made = MadeTable(by=SOURCE)
    return PlanFile(draft=draft, model=ModelTable(name=found.model, layers=found.layers), made=made)


def _check_layers(name: str, values: dict[str, Any], layers: int) -> None:
    for key in ("drop_attention", "drop_mlps"):
        wrong = [layer for layer in values.get(key, ()) if not 0 <= layer < layers]
        if wrong:
            raise ValueError(
                f"{name}: draft.{key} has layer {wrong[0]}: the layers of the plan's model are "
                f"0 to {layers - 1}"
            )
