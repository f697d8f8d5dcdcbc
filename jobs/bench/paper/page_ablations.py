"""The page's ablations: each parameter of our reading of ADMG, changed alone."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.bench.paper.markdown import number, percent, signed, table, with_error
from jobs.bench.paper.modelling import left_out, modelled, shape_of
from jobs.bench.paper.numbers import acceptance, apart, per_pass, rows_in, tasks_of, told
from jobs.bench.paper.record import Record
from jobs.bench.paper.rows import Rows, joined
from jobs.devices import GPUS

# Title, what the parts of a cell's name are, and the cell that others are compared with.
GROUPS = {
    "rules": (
        "Thresholds, means and the two rules",
        ("level", "mean", "rule 1", "rule 2"),
        "A threshold is calibrated to drop that many layers with both rules off, so that rules add "
        "layers; a count keeps the number and changes the choice.",
    ),
    "margin": (
        "How far below the threshold the rules reach",
        ("margin",),
        "Both rules, at the threshold that drops that many layers without them.",
    ),
    "guards": (
        "Layers that always stay",
        ("first", "last"),
        "At the same number of dropped layers.",
    ),
    "refresh": (
        "Plans made anew while decoding",
        ("when",),
        "From the similarities of verified tokens; the same number of dropped layers. Completions "
        "are as long as those of the main tables.",
    ),
    "bytes": (
        "What to leave out at equal keys and values saved",
        ("share", "what"),
        "Dropped layers save their weights as well. Limited heads read the first 4 keys and the "
        "last 64, so that more of them are limited than layers are dropped.",
    ),
    "whole": (
        "Attention alone against whole layers",
        ("layers", "what"),
        "One fixed set, ranked by held-out similarity.",
    ),
    "filling": (
        "Hole filling",
        ("layers", "filling"),
        "The running mean of a dropped layer's verified outputs in its place.",
    ),
}
_COLUMNS = ("tokens per target pass", "minus the first of them", "accepted", "layers dropped")
_COLUMNS = (*_COLUMNS, "weights saved", "KV saved", "H200, batch 1", "H200, batch 32")


def group_rows(record: Record, group: str) -> dict[str, Rows]:
    """The rows of all tasks together, by the rest of the cells' names."""
    start = f"ablation/{group}/"
    found = {}
    for name in record.cells:
        if name.startswith(start):
            parts = [rows_in(record, name, task, "greedy") for task in tasks_of(record)]
            if all(part is not None for part in parts):
                found[name.removeprefix(start)] = joined([p for p in parts if p is not None])
    return found


def ablation_tables(record: Record) -> Iterator[tuple[str, str, str]]:
    """Title, explanation and table of each group that was run."""
    for group, (title, names, said) in GROUPS.items():
        rows = group_rows(record, group)
        if rows:
            yield title, said, _table(record, names, rows)


def _table(record: Record, names: tuple[str, ...], rows: dict[str, Rows]) -> str:
    shape = shape_of(record.about)
    first = next(iter(rows.values()))
    lines = []
    for name, own in rows.items():
        left = left_out([own], shape)
        counted = per_pass([own])
        speedups = [told(modelled([own], shape, GPUS["H200"], batch)) for batch in (1, 32)]
        mlps = f" + {own.mlps} MLPs" if own.mlps else ""
        lines.append(
            [
                *name.split("/"),
                with_error(told(counted)),
                "" if own is first else signed(apart(counted, per_pass([first]))),
                with_error(told(acceptance([own]))),
                number(own.mean_dropped, ".1f") + mlps,
                percent(left.weight_share),
                percent(left.kv_share),
                *map(with_error, speedups),
            ]
        )
    return table([*names, *_COLUMNS], lines)
