"""Timing a grid within a time: cell by cell, the two systems in turn, what is measured kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from jobs.bench.measure import Outcome
from jobs.bench.process import Worker
from jobs.bench.runner import Plan, Say, check, loaded
from jobs.bench.settings import Cell, Settings
from jobs.bench.systems import PLAIN

# Token ids by workload and batch.
Prompts = Mapping[tuple[str, int], list[list[int]]]

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

    def only(self, cells: Iterable[Cell]) -> Grid:
        """The same with these cells alone, as far as they are timed."""
        chosen = {cell: self.timed[cell] for cell in cells if cell in self.timed}
        return Grid(self.about, self.system, chosen)

    def to_dict(self) -> dict[str, Any]:
        """As it is recorded; `resumed` reads it."""
        cells = [
            asdict(cell)
            | {"outcomes": {name: [asdict(o) for o in found] for name, found in both.items()}}
            for cell, both in self.timed.items()
        ]
        return {"about": self.about, "system": self.system, "cells": cells}


# What must be the same for two runs to be one: all but the moment and the command's words. Of the
# prompts' digests, which say what --data held, those that both have.
_FREE = ("date", "command", "peaks", "data", "prompts")


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
        held, ours = before["about"]["prompts"], grid.about["prompts"]
        if other := [name for name in ours if held.get(name, ours[name]) != ours[name]]:
            raise ValueError(f"{wrong} (the prompts of {', '.join(other)} differ)")
        grid.about["prompts"] = held | ours
        for entry in before["cells"]:
            cell = Cell(entry["workload"], entry["batch"], entry["temperature"])
            found = entry["outcomes"].items()
            grid.timed[cell] = {name: [Outcome(**o) for o in all_of] for name, all_of in found}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(wrong) from error


def prompts_by_batch(settings: Settings) -> Prompts:
    """Of each batch and workload; none depends on which other batches there are.

    Raises:
        ValueError: what `check` refuses.
    """
    found = {}
    for batch in settings.batches:
        plan = check(replace(settings, batches=(batch,), prompts=prompts_for(batch)))
        found |= {(name, batch): prompts for name, prompts in plan.prompts.items()}
    return found


def digests(prompts: Prompts) -> dict[str, str]:
    """What tells other prompts of the same name from these."""
    return {
        f"{name}, batch {batch}": sha256(json.dumps(ids).encode()).hexdigest()[:16]
        for (name, batch), ids in prompts.items()
    }


def time_grid(
    plan: Plan,
    prompts: Prompts,
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
            own = prompts[cell.workload, cell.batch]
            first = len(grid.timed) % 2  # a cell of one repeat must not always favour the same
            limits = (share, clock, first)
            grid.timed[cell] = _time_cell(cell, own, plan, workers, grid.system, *limits)
            keep(grid)


@contextmanager
def _workers(plan: Plan, say: Say) -> Iterator[dict[str, Worker]]:
    with loaded(plan, say) as (workers, _):
        yield workers


def _time_cell(
    cell: Cell,
    prompts: list[list[int]],
    plan: Plan,
    workers: dict[str, Worker],
    system: str,
    until: float,
    clock: Callable[[], float],
    first: int,
) -> dict[str, list[Outcome]]:
    work = {
        "prompts": prompts,
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
        for name in list(timed)[:: -1 if (repeat + first) % 2 else 1]:
            timed[name].append(Outcome(**workers[name].ask("run")))
        now = clock()
        if now + (now - began) > until:
            break
    return timed
