"""Where Draft & Verify's sets come from: plans that are named, or a search on held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.bench.paper.decoding import Decoder
from jobs.bench.paper.search import Search
from jobs.bench.paper.settings import Settings
from jobs.bench.paper.tasks import Task
from jobs.plan_file import read_plan


def searcher(settings: Settings, decoder: Decoder) -> Search:
    """The search of a run."""

    def search(task: Task) -> Mapping[str, Any]:
        if task.name in settings.plans:
            return planned(settings.plans[task.name])
        return {"attention": [], "mlps": [], "how": "not searched"}

    return search


def planned(name: str) -> dict[str, Any]:
    """A named plan's set.

    Raises:
        ValueError: the plan cannot be read, or has no fixed set.
    """
    values = read_plan(name).values()
    attention, mlps = values.get("drop_attention"), values.get("drop_mlps", [])
    if attention is None:
        raise ValueError(f"--plan {name} has no drop_attention: it must be a fixed set")
    return {"attention": list(attention), "mlps": list(mlps), "how": f"plan {name}"}
