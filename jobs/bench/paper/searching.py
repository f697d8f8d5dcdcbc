"""Draft & Verify's sets: plans that are named, or a search on held-out prompts.

The search is that of `calibrate draft-verify`: switches of sub-layers, a set being worth its
modelled speedup at batch 1, as in the published runs, told from known completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from admg.plan import DraftPlan
from admg.teacher import Taught, Teacher
from jobs.bench.paper.decoding import Decoder
from jobs.bench.paper.settings import Settings
from jobs.bench.paper.tasks import Task
from jobs.bench.paper.variants import EXIT, LONGEST, PLAIN
from jobs.calibrate.objective import Objective
from jobs.calibrate.search import Search
from jobs.devices import GPUS
from jobs.modelled import Shape
from jobs.plan_file import is_file, read_plan

_DEVICE = "A100-80G"
Find = Callable[[Task], Mapping[str, Any]]


def searcher(settings: Settings, decoder: Decoder) -> Find:
    """What finds the set of a task: `attention` and `mlps`, lists of layers, and how."""

    def find(task: Task) -> Mapping[str, Any]:
        if task.name in settings.plans:
            return planned(settings.plans[task.name])
        return searched(settings, decoder, task)

    return find


def planned(name: str) -> dict[str, Any]:
    """A named plan's set.

    Raises:
        ValueError: the plan cannot be read, or has no fixed set.
    """
    values = read_plan(name).values()
    attention, mlps = values.get("drop_attention"), values.get("drop_mlps", [])
    if attention is None:
        raise ValueError(f"--plan {name} has no drop_attention: it must be a fixed set")
    known = Path(name).name if is_file(name) else name
    return {"attention": list(attention), "mlps": list(mlps), "how": f"the plan {known}"}


def searched(settings: Settings, decoder: Decoder, task: Task) -> dict[str, Any]:
    """The best of so many trials on the held-out prompts of a task; goes on where it was ended."""
    requests = decoder.held_out(task, settings.sizes.short)
    done = decoder.decode(PLAIN, requests)
    completions = [done[r.key].token_ids for r in requests]
    teacher = Teacher(
        decoder.model, requests, completions, draft_tokens=LONGEST, exit_threshold=EXIT
    )
    lengths = [
        len(r.prompt_token_ids) + len(c) / 2 for r, c in zip(requests, completions, strict=True)
    ]
    context = sum(lengths) / len(lengths)
    shape = Shape.of(decoder.model.config)
    objective = Objective(shape, GPUS[_DEVICE], 1, context)

    def worth(layers: Any) -> float:
        plan = DraftPlan(layers.attention, LONGEST, layers.mlps)
        taught = sum(teacher.judge(plan), Taught())
        return objective.speedup([plan], taught.draft_tokens, taught.tokens_per_pass)

    storage = _storage(settings, task)
    storage.parent.mkdir(parents=True, exist_ok=True)
    about = f"{task.name}: {settings.about()} {task.about()}"
    search = Search(storage, about, shape.layers, settings.seed)
    for _ in search.run(settings.sizes.trials, worth):
        pass
    best = search.best
    assert best is not None
    storage.unlink()
    return {
        "attention": list(best.layers.attention),
        "mlps": list(best.layers.mlps),
        "how": f"a search of {settings.sizes.trials} trials, {objective}",
        "promised": round(best.value, 4),
    }


def _storage(settings: Settings, task: Task) -> Path:
    return settings.output / f".paper-{task.name}.trials"
