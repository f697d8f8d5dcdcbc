"""Timing a grid within a time: cell by cell, the two systems in turn, what is measured kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.bench.measure import Outcome
from jobs.bench.process import Worker
from jobs.bench.runner import Plan, Say, loaded
from jobs.bench.settings import Cell
from jobs.bench.systems import PLAIN
from jobs.bench.workloads import spread

# Prompts of a cell: one and a half batches, so that places are refilled, and a few at batch 1.
_FEWEST = 3
_MORE = 0.5


def prompts_for(batch: int) -> int:
    """Prompts that a cell of this batch decodes."""
    return max(_FEWEST, batch + round(_MORE * batch))


@dataclass
class Grid:
    """What was timed so far: of every cell the repeats by system. `about` says of what."""

    about: dict[str, Any]
    system: str
    timed: dict[Cell, dict[str, list[Outcome]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it is recorded; `resumed` reads it."""
        cells = [
            asdict(cell)
            | {"outcomes": {name: [asdict(o) for o in found] for name, found in both.items()}}
            for cell, both in self.timed.items()
        ]
        return {"about": self.about, "system": self.system, "cells": cells}


# What must be the same for two runs to be one: all but the moment and the command's words.
_FREE = ("date", "command", "peaks")


def resumed(grid: Grid, before: Any, place: Path) -> None:
    """Take over the cells that an earlier run of the same grid has timed.

    Raises:
        ValueError: the file holds something else.
    """
    wrong = f"--record is {place}: it holds another measurement, so it must be another file"
    try:
        about = {k: v for k, v in before["about"].items() if k not in _FREE}
        own = {k: v for k, v in grid.about.items() if k not in _FREE}
        if before["system"] != grid.system or about != own:
            differs = sorted(k for k in about.keys() | own.keys() if about.get(k) != own.get(k))
            raise ValueError(f"{wrong} ({', '.join(differs) or 'system'} differ)")
        for entry in before["cells"]:
            cell = Cell(entry["workload"], entry["batch"], entry["temperature"])
            found = entry["outcomes"].items()
            grid.timed[cell] = {name: [Outcome(**o) for o in all_of] for name, all_of in found}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(wrong) from error


def time_grid(
    plan: Plan,
    grid: Grid,
    seconds: float,
    say: Say,
    keep: Callable[[Grid], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Time the cells that are not timed yet, each at least once, while there is time.

    A cell gets its share of the time that is left: as many repeats as fit, up to `repeats`.

    Raises:
        WorkerError: a system failed.
    """
    end = clock() + seconds
    cells = [cell for cell in plan.settings.cells if cell not in grid.timed]
    if not cells:
        return
    with _workers(plan, say) as workers:
        for number, cell in enumerate(cells):
            left = end - clock()
            if left <= 0:
                say(f"the time is over, {len(cells) - number} cells are left")
                return
            say(f"[{number + 1}/{len(cells)}] {cell}")
            share = clock() + left / (len(cells) - number)
            grid.timed[cell] = _time_cell(cell, plan, workers, grid.system, share, clock)
            keep(grid)


@contextmanager
def _workers(plan: Plan, say: Say) -> Iterator[dict[str, Worker]]:
    with loaded(plan, say) as (workers, _):
        yield workers


def _time_cell(
    cell: Cell,
    plan: Plan,
    workers: dict[str, Worker],
    system: str,
    until: float,
    clock: Callable[[], float],
) -> dict[str, list[Outcome]]:
    prompts = plan.prompts[cell.workload]
    work = {
        "prompts": spread(prompts, min(prompts_for(cell.batch), len(prompts))),
        "batch": cell.batch,
        "temperature": cell.temperature,
        "max_tokens": plan.settings.max_tokens,
    }
    timed: dict[str, list[Outcome]] = {PLAIN: [], system: []}
    for name in timed:
        workers[name].ask("prepare", cell=work)
    for repeat in range(plan.settings.repeats):
        began = clock()
        # Back and forth, so that a machine that gets slower favours nobody.
        for name in list(timed)[:: -1 if repeat % 2 else 1]:
            timed[name].append(Outcome(**workers[name].ask("run")))
        now = clock()
        if now + (now - began) > until:
            break
    return timed
