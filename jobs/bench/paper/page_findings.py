"""What the run says in sentences, and which of it is likely to change with the model's size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jobs.bench.paper.bootstrap import Counts, Estimate
from jobs.bench.paper.markdown import signed, with_error, with_interval
from jobs.bench.paper.modelling import BATCHES, NAMED, modelled, shape_of
from jobs.bench.paper.numbers import (
    apart,
    over_tasks,
    per_pass,
    system_rows,
    tasks_of,
    times,
    told,
)
from jobs.bench.paper.page_ablations import group_rows
from jobs.bench.paper.page_controls import counts_of
from jobs.bench.paper.record import Record
from jobs.bench.paper.rows import Rows
from jobs.devices import GPUS

_LAW = "greedy"


def findings(record: Record) -> Iterator[str]:
    """A line for each comparison that was run, with its error and what it may depend on."""
    if counts_of(record):
        yield (
            "Per-input choice against fixed and random sets: the answer at the top."
            f"{_needs(record, 'With the layers of 13B to choose from it may be another.')}"
        )
    yield from _systems(record)
    yield from _filling(record)
    yield from _bytes(record)
    yield from _rules(record)


def published_size(record: Record) -> bool:
    """Whether the model is as large as those of the published comparison."""
    shape = record.about["shape"]
    return bool(shape["num_layers"] >= 40 and shape["hidden_size"] >= 5120)


def _needs(record: Record, why: str) -> str:
    return "" if published_size(record) else f" {why}"


def _all(record: Record, system: str) -> Counts | None:
    sets = over_tasks([system_rows(record, system, t, _LAW) for t in tasks_of(record)])
    return per_pass(sets) if sets else None


def _systems(record: Record) -> Iterator[str]:
    names = ("admg", "draft-verify", "draft-verify-other", "admg-other")
    own, searched, other, elsewhere = (_all(record, name) for name in names)
    if own is not None and searched is not None:
        yield (
            "ADMG against Draft & Verify with its set for the same text: tokens per target pass "
            f"{_gap(own, searched)}. {_sizes(record)}Modelled speedup: {_modelled(record)}."
            f"{_needs(record, 'Needs 13B, where published sets leave out more.')}"
        )
    if searched is not None and other is not None:
        yield (
            f"Draft & Verify's sets for other text instead of the same: {_gap(other, searched)}."
            f"{_needs(record, 'Needs 13B.')}"
        )
    if own is not None and elsewhere is not None:
        yield (
            f"ADMG's thresholds from other text instead of the same: {_gap(elsewhere, own)}."
            f"{_needs(record, 'Needs 13B.')}"
        )
    filled = _all(record, "admg-filled")
    if own is not None and filled is not None:
        yield (
            f"Hole filling in the published setting: {_gap(filled, own)} over ADMG alone."
            f"{_needs(record, 'How much it gains needs 13B.')}"
        )


def _sizes(record: Record) -> str:
    """Whether the two leave out as much."""
    found = []
    for system in ("admg", "draft-verify"):
        rows = [r for t in tasks_of(record) for r in system_rows(record, system, t, _LAW)]
        layers, mlps = (
            sum(values) / len(rows)
            for values in ([r.mean_dropped for r in rows], [r.mlps for r in rows])
        )
        found.append(f"{layers:.1f} attention layers and {mlps:.1f} MLPs")
    if found[0] == found[1]:
        return f"Both leave out {found[0]}. "
    return f"They leave out {found[0]} against {found[1]}, so compare the modelled speedup. "


def _modelled(record: Record) -> str:
    """ADMG's speedup over Draft & Verify's, by the roofline."""
    shape, found = shape_of(record.about), []
    for batch in BATCHES:
        both = []
        for system in ("admg", "draft-verify"):
            parts = [
                modelled(system_rows(record, system, task, _LAW), shape, GPUS[NAMED[0]], batch)
                for task in tasks_of(record)
            ]
            over = np.concatenate([p.over for p in parts], axis=1)
            both.append(Counts(over, np.concatenate([p.under for p in parts], axis=1)))
        found.append(
            f"{with_interval(times(*both))} times as high at batch {batch} on an {NAMED[0]}"
        )
    return " and ".join(found)


def _filling(record: Record) -> Iterator[str]:
    rows = group_rows(record, "filling")
    for name, on in rows.items():
        count, _, switch = name.partition("/")
        if switch == "on" and f"{count}/off" in rows:
            yield (
                f"Hole filling at {count} dropped layers: {_between(on, rows[f'{count}/off'])}."
                f"{_needs(record, 'How much it gains needs 13B.')}"
            )


def _bytes(record: Record) -> Iterator[str]:
    rows = group_rows(record, "bytes")
    shares = dict.fromkeys(name.partition("/")[0] for name in rows)
    for share in shares:
        dropped, heads = (
            rows.get(f"{share}/{what}") for what in ("dropped layers", "limited heads")
        )
        layers = rows.get(f"{share}/limited layers")
        if dropped is None or heads is None:
            continue
        line = (
            f"At {float(share):.0%} of the keys and values saved, limiting heads instead of "
            f"dropping layers: {_between(heads, dropped)}"
        )
        if layers is not None:
            line += f"; by head instead of by layer: {_between(heads, layers)}"
        yield f"{line}.{_needs(record, 'With many more heads to choose from it needs 13B.')}"


def _rules(record: Record) -> Iterator[str]:
    rows = {n: r for n, r in group_rows(record, "rules").items() if n.startswith("count ")}
    off = next((r for n, r in rows.items() if n.endswith("off/off")), None)
    for name, own in rows.items():
        one, two = name.split("/")[2:]
        if off is not None and own is not off:
            on = " and ".join(f"rule {i}" for i, s in ((1, one), (2, two)) if s == "on")
            yield (
                f"With {on} at the same number of dropped layers: {_between(own, off)}. Rules are "
                f"our reading.{_needs(record, 'What they are for at 13B is open.')}"
            )


def _between(a: Rows, b: Rows) -> str:
    return _gap(per_pass([a]), per_pass([b]))


def _gap(a: Counts, b: Counts) -> str:
    gap, value = apart(a, b), told(a)
    return f"{signed(gap)} ({_judged(gap)}; {with_error(value)} in all)"


def _judged(gap: Estimate | None) -> str:
    if gap is None or not gap.apart:
        return "not told apart"
    return "more" if gap.value > 0 else "less"
