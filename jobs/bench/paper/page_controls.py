"""The page's answer: does it matter that layers are chosen for each input?"""

from __future__ import annotations

from collections.abc import Iterator

from jobs.bench.paper.bootstrap import Counts, Estimate
from jobs.bench.paper.markdown import signed, table, with_error
from jobs.bench.paper.numbers import (
    apart,
    both_laws,
    control_rows,
    over_tasks,
    per_pass,
    tasks_of,
    told,
)
from jobs.bench.paper.record import Record

CONTROLS = {
    "admg": "per input (ADMG)",
    "best": "best fixed set in hindsight",
    "ranked": "one fixed set by the same measure",
    "random": "random sets",
}
_AGAINST = {
    "best": "the best fixed set in hindsight",
    "ranked": "one fixed set chosen by the same measure",
    "random": "random sets of equal size",
}
ALL = "all"


def counts_of(record: Record) -> list[int]:
    """The numbers of dropped layers that controls were run with."""
    found = {name.split("/")[1] for name in record.cells if name.startswith("control/")}
    return sorted(map(int, found))


def control(record: Record, count: int, kind: str, task: str, law: str) -> Counts | None:
    """Tokens per pass of a control on a task, or on all of them."""
    tasks = tasks_of(record) if task == ALL else [task]
    sets = over_tasks([control_rows(record, count, kind, t, law) for t in tasks])
    return per_pass(sets) if sets else None


def control_table(record: Record, law: str) -> str:
    """Tokens per pass of each control, and how far per-input choice is from it."""
    head = ["layers dropped, text"]
    head += [name for kind, name in CONTROLS.items()]
    head += [f"per input minus {name}" for kind, name in CONTROLS.items() if kind != "admg"]
    rows = []
    for count in counts_of(record):
        for task in (*tasks_of(record), ALL):
            found = {kind: control(record, count, kind, task, law) for kind in CONTROLS}
            own = found["admg"]
            cells = [with_error(None if c is None else told(c)) for c in found.values()]
            cells += [
                signed(None if own is None or c is None else apart(own, c))
                for kind, c in found.items()
                if kind != "admg"
            ]
            rows.append([f"{count}, {task}", *cells])
    return table(head, rows)


def answer(record: Record) -> Iterator[str]:
    """The question and what this run says, in sentences."""
    layers = record.about["shape"]["num_layers"]
    for count in counts_of(record):
        for law in both_laws():
            own = control(record, count, "admg", ALL, law)
            if own is None:
                continue
            value = told(own)
            assert value is not None
            parts = []
            for kind, name in _AGAINST.items():
                other = control(record, count, kind, ALL, law)
                if other is not None and (gap := apart(own, other)) is not None:
                    parts.append(f"{_verdict(gap)} {name}: {signed(gap)}")
            yield (
                f"- {count} of {layers} attention layers dropped, {law}: "
                f"{with_error(value)} tokens per target pass over {own.prompts} prompts. "
                f"Per-input choice is {'; '.join(parts)}."
            )


def _verdict(gap: Estimate) -> str:
    if not gap.apart:
        return "not told apart from"
    return "better than" if gap.value > 0 else "worse than"
