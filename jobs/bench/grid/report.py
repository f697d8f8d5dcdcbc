"""What a grid says: a table, the worst cell and the means, and what was aimed at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from jobs.bench.grid.run import Grid
from jobs.bench.measure import Outcome, median_of
from jobs.bench.settings import Cell
from jobs.bench.systems import PLAIN
from jobs.explained import rounds_line
from jobs.terminal import numbers_table

if TYPE_CHECKING:
    from rich.table import Table

Rate = Callable[[Outcome], float | None]


@dataclass(frozen=True, slots=True)
class CellRatios:
    """One cell: ratios to plain decoding, repeat by repeat, end to end and of decoding alone."""

    cell: Cell
    whole: list[float]
    decode: list[float]
    per_pass: float | None
    rounds: dict[str, int]


@dataclass(frozen=True, slots=True)
class Goal:
    """Something that was aimed at; `found` None where its cells were not timed."""

    name: str
    wanted: float
    found: float | None


def ratios_of(grid: Grid) -> list[CellRatios]:
    """Every cell that was timed."""
    found = []
    for cell, both in grid.timed.items():
        plain, own = both[PLAIN], both[grid.system]
        said = own[-1].explanation or {}
        found.append(
            CellRatios(
                cell,
                _ratios(own, plain, lambda o: o.tokens_per_second),
                _ratios(own, plain, lambda o: o.decode_tokens_per_second),
                median_of(own, lambda o: o.mean_acceptance_length),
                dict(said.get("rounds", {})),
            )
        )
    return found


def _ratios(own: Sequence[Outcome], plain: Sequence[Outcome], rate: Rate) -> list[float]:
    pairs = ((rate(a), rate(b)) for a, b in zip(own, plain, strict=True))
    return [a / b for a, b in pairs if a and b]


def goals(cells: Sequence[CellRatios]) -> Iterator[Goal]:
    """What `auto` was built to reach: decoding, greedy, but for the floor, which is everywhere."""

    def mean(wanted: Callable[[Cell], bool]) -> float | None:
        chosen = [median(c.decode) for c in cells if c.decode and wanted(c.cell)]
        return fmean(chosen) if chosen else None

    def at(batch: int, workload: str | None = None) -> Callable[[Cell], bool]:
        return lambda c: c.batch == batch and c.temperature == 0 and workload in (None, c.workload)

    yield Goal("decoding, summarization, batch 1", 1.8, mean(at(1, "summarization")))
    yield Goal("decoding, mean of the workloads, batch 1", 1.5, mean(at(1)))
    yield Goal("decoding, mean of the workloads, batch 4", 1.3, mean(at(4)))
    yield Goal("decoding, copying, batch 16", 1.15, mean(at(16, "copying")))
    floor = worst(cells)
    yield Goal("end to end, worst cell", 0.97, None if floor is None else median(floor.whole))
    slowest = min((median(c.decode) for c in cells if c.decode), default=None)
    yield Goal("decoding, worst cell", 0.97, slowest)


def worst(cells: Sequence[CellRatios]) -> CellRatios | None:
    """The cell that gains least end to end."""
    return min((c for c in cells if c.whole), key=lambda c: median(c.whole), default=None)


def sentences(cells: Sequence[CellRatios], left: int) -> Iterator[str]:
    """The worst cell and the means, for people; `left` cells were not timed."""
    low = worst(cells)
    if low is None:
        yield "no cell was timed"
        return
    at = f"{median(low.whole):.2f} end to end"
    if low.decode:
        at += f", {median(low.decode):.2f} decoding"
    yield f"worst cell: {low.cell}: {at}"
    for name, of in (("end to end", "whole"), ("decoding", "decode")):
        values = [median(getattr(c, of)) for c in cells if getattr(c, of)]
        if values:
            yield f"mean of {len(values)} cells, {name}: {fmean(values):.2f}"
    if left:
        yield f"{left} cells are not timed: with --record, the same command goes on there"


def grid_table(cells: Sequence[CellRatios], system: str) -> Table:
    """A line for each cell."""
    title = f"{system} against plain decoding: ratios of tokens/s, median (lowest to highest)"
    table = numbers_table(title, "cell", ("end to end", "decoding", "per pass"))
    table.add_column("rounds by choice", overflow="fold")
    for c in cells:
        per_pass = "-" if c.per_pass is None else f"{c.per_pass:.2f}"
        rounds = rounds_line(c.rounds) if c.rounds else ""
        table.add_row(str(c.cell), _spread(c.whole), _spread(c.decode), per_pass, rounds)
    return table


def goals_table(cells: Sequence[CellRatios]) -> Table:
    """What was aimed at beside what was found."""
    table = numbers_table("Goals, greedy but for the worst cell", "", ("wanted", "found"))
    for goal in goals(cells):
        found = "not timed" if goal.found is None else f"{goal.found:.2f}"
        missed = goal.found is not None and goal.found < goal.wanted
        table.add_row(goal.name, f"{goal.wanted:g}", f"{found}{', not reached' * missed}")
    return table


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def document(grid: Grid) -> dict[str, Any]:
    """The last line of the output."""
    cells = ratios_of(grid)
    low = worst(cells)
    return grid.about | {
        "system": grid.system,
        "cells": [
            {
                "workload": c.cell.workload,
                "batch": c.cell.batch,
                "temperature": c.cell.temperature,
                "ratios": [round(r, 4) for r in c.whole],
                "decode_ratios": [round(r, 4) for r in c.decode],
                "mean_acceptance_length": None if c.per_pass is None else round(c.per_pass, 4),
                "rounds": c.rounds,
            }
            for c in cells
        ],
        "worst_cell": None if low is None else str(low.cell),
        "goals": [
            {
                "name": g.name,
                "wanted": g.wanted,
                "found": None if g.found is None else round(g.found, 4),
            }
            for g in goals(cells)
        ],
    }
