"""Times every cell in a worker; what fails, does not fit or comes too late is left out by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jobs.bench.gpu.cells import Cell, Grid
from jobs.bench.gpu.clock import Clock, LeftOutError, ask
from jobs.bench.gpu.worth import Timed
from jobs.bench.process import Worker

Say = Callable[[str], None]

# The longest that one cell may take, and that making a model may.
CELL_SECONDS = 60.0
LOAD_SECONDS = 120.0
# Of the time for cells, what those with the full weights may use up.
FULL_SHARE = 0.7


@dataclass
class Costs:
    """What has been measured so far; `left_out` says of each other cell why it was not."""

    timed: list[Timed] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)


def measure(
    grid: Grid, costs: Costs, clock: Clock, threads: int, say: Say, kept: Callable[[], None]
) -> None:
    """Fill `costs`; an interruption leaves in it what is known by then.

    `kept` is called after each cell.
    """
    for weights, cells in grid.stages():
        part = clock.part(FULL_SHARE if weights == "full" else 1.0)
        _stage(grid, weights, cells, costs, part, threads, say, kept)


def _stage(
    grid: Grid,
    weights: str,
    cells: list[Cell],
    costs: Costs,
    clock: Clock,
    threads: int,
    say: Say,
    kept: Callable[[], None],
) -> None:
    """The cells of one model, in one worker; another one takes over where it was lost."""
    todo = list(cells)
    while todo:
        if not clock.left:
            _leave_out(costs, todo, "no time was left", say)
            return
        with _started(threads) as worker:
            try:
                limit = min(LOAD_SECONDS, max(clock.left, 1.0))
                made = ask(worker, limit, "load", **_model(grid, weights, threads))
            except LeftOutError as error:
                _leave_out(costs, todo, str(error), say)
                return
            costs.models[weights] = made
            while todo and clock.left:
                cell = todo.pop(0)
                try:
                    _cell(worker, cell, costs, clock, say)
                except LeftOutError as error:
                    _leave_out(costs, [cell], str(error), say)
                    break
                finally:
                    kept()


def _cell(worker: Worker, cell: Cell, costs: Costs, clock: Clock, say: Say) -> None:
    seconds = min(CELL_SECONDS, max(clock.left, 1.0))
    ready = ask(worker, seconds, "prepare", cell=cell.to_dict())
    if "skipped" in ready:
        _leave_out(costs, [cell], ready["skipped"], say)
        return
    answer = ask(worker, seconds, "run")
    costs.timed.append(Timed(cell, answer))
    say(f"{cell}: {1000 * answer['round_seconds']:.2f} ms")


def _leave_out(costs: Costs, cells: list[Cell], why: str, say: Say) -> None:
    for cell in cells:
        costs.left_out[str(cell)] = why
    shown = str(cells[0]) if len(cells) == 1 else f"{len(cells)} cells"
    say(f"left out: {shown}: {why}")


@contextmanager
def _started(threads: int) -> Iterator[Worker]:
    with Worker("costs", threads=threads, module="jobs.bench.gpu.costs") as worker:
        yield worker


def _model(grid: Grid, weights: str, threads: int) -> dict[str, Any]:
    return {
        "backend": "jobs.bench.gpu.costs:Costs",
        "shape": grid.shape,
        "weights": weights,
        "threads": threads,
    }
