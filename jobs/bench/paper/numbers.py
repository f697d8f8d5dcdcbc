"""From a record to the numbers of the page; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.bench.paper.bootstrap import Counts, Estimate, difference, estimate, ratio
from jobs.bench.paper.hindsight import best_fixed
from jobs.bench.paper.record import Record
from jobs.bench.paper.rows import Rows, joined, stacked
from jobs.bench.paper.settings import LAWS

Sets = list[Rows]
_SEED = 20241001  # of all resamples: the same record gives the same page


def tasks_of(record: Record) -> list[str]:
    """The tasks of a run."""
    return list(record.about["tasks"])


def sets_of(record: Record) -> dict[str, Mapping[str, Any]]:
    """Draft & Verify's set of each task that has one, and where it comes from."""
    cells = {task: record.cells.get(f"search/{task}") for task in tasks_of(record)}
    return {task: cell for task, cell in cells.items() if cell is not None}


def rows_in(record: Record, name: str, task: str, law: str) -> Rows | None:
    """What a cell has counted; None where it was not run."""
    cell: Mapping[str, Any] = record.cells.get(name, {})
    found = cell.get("rows", {}).get(f"{task}/{law}")
    return None if found is None else Rows.from_dict(found)


def system_rows(record: Record, system: str, task: str, law: str) -> Sets:
    """The rows of a system of the main table: several sets where it stands for several."""
    others = [t for t in tasks_of(record) if t != task]
    if system.endswith("-other"):
        names = [f"main/{system.removesuffix('-other')}@{t}" for t in others]
    elif system == "random":
        names = [n for n in record.cells if n.startswith("main/random@")]
    else:
        names = [f"main/{system}" if system in ("plain", "auto") else f"main/{system}@{task}"]
    return [rows for n in names if (rows := rows_in(record, n, task, law)) is not None]


def control_rows(record: Record, count: int, kind: str, task: str, law: str) -> Sets:
    """The rows of a control: `admg`, `random`, `ranked` (on the task itself) or `best`."""
    start = f"control/{count}/"
    if kind == "best":
        name = best_fixed(record.cells, count, task, (law,))
        names = [] if name is None else [name]
    elif kind == "random":
        names = [n for n in record.cells if n.startswith(f"{start}random@")]
    else:
        names = [f"{start}{kind}" if kind == "admg" else f"{start}ranked@{task}"]
    return [rows for n in names if (rows := rows_in(record, n, task, law)) is not None]


def over_tasks(parts: Sequence[Sets]) -> Sets:
    """Set by set, the rows of several tasks one after another; as many sets as all of them have."""
    if not parts or any(not sets for sets in parts):
        return []
    return [joined(rows) for rows in zip(*parts, strict=False)]


def per_pass(sets: Sets) -> Counts:
    """Tokens per target pass."""
    return stacked(sets, "committed", "passes")


def acceptance(sets: Sets) -> Counts:
    """Accepted over drafted tokens."""
    return stacked(sets, "accepted", "drafted")


def told(counts: Counts) -> Estimate | None:
    """A number with its error."""
    return estimate(counts, seed=_SEED)


def apart(a: Counts, b: Counts) -> Estimate | None:
    """How much one is above the other, on the same prompts."""
    return difference(a, b, seed=_SEED)


def times(a: Counts, b: Counts) -> Estimate | None:
    """How many times one is the other, on the same prompts."""
    return ratio(a, b, seed=_SEED)


@dataclass(frozen=True, slots=True)
class Lossless:
    """Rows that were decoded by a drafter, and those whose tokens are plain decoding's.

    `others` are the cells with rows of other tokens.
    """

    rows: int
    identical: int
    others: tuple[str, ...]


def lossless(record: Record) -> Lossless:
    """Over all counted cells but plain decoding itself."""
    cells = {
        name: [same for part in cell.get("rows", {}).values() for same in part["identical"]]
        for name, cell in record.cells.items()
        if name != "main/plain" and not name.startswith("timed/")
    }
    others = tuple(name for name, rows in cells.items() if not all(rows))
    rows = [same for rows in cells.values() for same in rows]
    return Lossless(len(rows), sum(rows), others)


def timed_rows(record: Record, system: str, task: str, law: str) -> list[Rows]:
    """One for each repeat that timed the system."""
    found = []
    for name, cell in record.cells.items():
        if name.startswith(f"timed/{task}/{law}/") and system in cell["rows"]:
            found.append(Rows.from_dict(cell["rows"][system]))
    return found


def turn_speed(rows: Sequence[Rows]) -> Counts:
    """Tokens per second of whole turns, each repeat one; prefills are part of them."""
    return Counts.of([sum(r.tokens) for r in rows], [r.wall for r in rows])


def speed(rows: Sequence[Rows], prefill: bool) -> Counts:
    """Tokens per second of rows, repeats summed; the first token belongs to the prefill.

    For rows that were decoded alone: where sequences share passes their seconds overlap.
    """
    over = [sum(r.tokens[i] - (not prefill) for r in rows) for i in range(len(rows[0]))]
    under = [
        sum(r.decode_seconds[i] + prefill * r.prefill_seconds[i] for r in rows)
        for i in range(len(rows[0]))
    ]
    return Counts.of(over, under)


def both_laws() -> tuple[str, ...]:
    """The laws, in the order of the page."""
    return tuple(LAWS)
