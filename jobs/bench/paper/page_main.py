"""The page's main tables: every system on every kind of text, and who was calibrated on what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.bench.paper.bootstrap import Counts
from jobs.bench.paper.markdown import (
    NONE,
    megabytes,
    number,
    percent,
    signed,
    table,
    with_error,
    with_interval,
)
from jobs.bench.paper.modelling import (
    BATCHES,
    NAMED,
    devices_of,
    left_out,
    modelled,
    shape_of,
)
from jobs.bench.paper.numbers import (
    Sets,
    acceptance,
    apart,
    both_laws,
    per_pass,
    rows_in,
    speed,
    system_rows,
    tasks_of,
    timed_rows,
    times,
    told,
)
from jobs.bench.paper.record import Record
from jobs.bench.paper.variants import SYSTEMS
from jobs.devices import GPUS

_COMPARED = ("best-fixed", "random")


def main_table(record: Record, task: str, law: str) -> str:
    """What was counted of every system on one kind of text under one law."""
    metrics = record.about["texts"][task]["metrics"]
    head = ["system", "tokens per target pass", "minus plain", "accepted", "drafted per pass"]
    head += ["layers dropped", "weights saved, MB", "KV saved, MB", *metrics, "identical rows"]
    plain = system_rows(record, "plain", task, law)
    rows = []
    for system, name in SYSTEMS.items():
        sets = system_rows(record, system, task, law)
        if sets and plain:
            rows.append(
                [name, *_counted(record, sets, plain), *_quality(sets, metrics), _same(sets)]
            )
    return table(head, rows)


def _counted(record: Record, sets: Sets, plain: Sets) -> list[str]:
    own = per_pass(sets)
    drafted = sum(sum(r.drafted) for r in sets)
    passes = sum(sum(r.passes) for r in sets)
    if not drafted:
        return [with_error(told(own)), *[NONE] * 6]
    left = left_out(sets, shape_of(record.about))
    dropped = sum(r.mean_dropped for r in sets) / len(sets)
    mlps = sets[0].mlps
    return [
        with_error(told(own)),
        signed(apart(own, per_pass(plain))),
        with_error(told(acceptance(sets))),
        number(drafted / max(1, passes), ".1f"),
        number(dropped, ".1f") + (f" + {mlps} MLPs" if mlps else ""),
        f"{megabytes(left.weight_bytes)} ({percent(left.weight_share)})",
        f"{megabytes(left.kv_bytes)} ({percent(left.kv_share)})",
    ]


def _quality(sets: Sets, metrics: Sequence[str]) -> list[str]:
    found = []
    for metric in metrics:
        scored = [r for r in sets if metric in r.quality]
        counts = None
        if scored:
            counts = Counts.of(
                [r.quality[metric] for r in scored], [[1.0] * len(r) for r in scored]
            )
        found.append(with_error(None if counts is None else told(counts), ".3f"))
    return found


def _same(sets: Sets) -> str:
    return f"{sum(sum(r.identical) for r in sets)}/{sum(map(len, sets))}"


def compared_table(record: Record, law: str) -> str:
    """In the published setting: how far systems are from the controls, in tokens per pass."""
    head = ["system, text", *(f"minus {SYSTEMS[c]}" for c in _COMPARED)]
    rows = []
    for system in ("admg", "draft-verify", "swift", "admg-filled"):
        for task in tasks_of(record):
            own = system_rows(record, system, task, law)
            others = [system_rows(record, c, task, law) for c in _COMPARED]
            if own and any(others):
                gaps = [apart(per_pass(own), per_pass(o)) if o else None for o in others]
                rows.append([f"{SYSTEMS[system]}, {task}", *map(signed, gaps)])
    return table(head, rows)


def modelled_table(record: Record, law: str) -> str:
    """Speedups by the roofline, systems by devices and batches, over all kinds of text."""
    shape, devices = shape_of(record.about), devices_of(record.run)
    head = ["system, text"] + [f"{d.name}, batch {b}" for d in devices for b in BATCHES]
    rows = []
    for system, name in SYSTEMS.items():
        for task in tasks_of(record):
            sets = system_rows(record, system, task, law)
            if not sets or system == "plain":
                continue
            found = [
                with_error(told(modelled(sets, shape, d, b))) for d in devices for b in BATCHES
            ]
            rows.append([f"{name}, {task}", *found])
    return table(head, rows)


def measured_table(record: Record) -> str | None:
    """Speedups by the clock of this run; None where nothing was timed."""
    head = ["system, text, law", "decoding", "end to end", "plain, tokens/s", "identical rows"]
    rows = []
    for system, name in SYSTEMS.items():
        for task in tasks_of(record):
            for law in both_laws():
                own = timed_rows(record, system, task, law)
                plain = timed_rows(record, "plain", task, law)
                if not own or system == "plain":
                    continue
                found = [times(speed(own, whole), speed(plain, whole)) for whole in (False, True)]
                reached = told(speed(plain, False))
                rows.append(
                    [
                        f"{name}, {task}, {law}",
                        *map(with_interval, found),
                        number(None if reached is None else reached.value, ".1f"),
                        _same(own),
                    ]
                )
    return table(head, rows) if rows else None


def robustness_tables(record: Record, law: str) -> Iterator[tuple[str, str]]:
    """For Draft & Verify's sets and ADMG's thresholds: calibrated on A, run on B."""
    tasks = tasks_of(record)
    shape, device = shape_of(record.about), GPUS[NAMED[0]]
    for system in ("draft-verify", "admg"):
        rows = []
        for a in tasks:
            cells = []
            for b in tasks:
                own = rows_in(record, f"main/{system}@{a}", b, law)
                best = rows_in(record, f"main/{system}@{b}", b, law)
                if own is None or best is None:
                    cells.append(NONE)
                    continue
                value = with_error(told(own.per_pass))
                gap = "" if a == b else f"; {signed(apart(own.per_pass, best.per_pass))}"
                speed = [told(modelled([own], shape, device, batch)) for batch in BATCHES]
                worth = ", ".join("-" if s is None else f"{s.value:.2f}" for s in speed)
                cells.append(f"{value}{gap} [{own.mean_dropped:.1f} dropped; {worth}]")
            rows.append([a, *cells])
        if any(c != NONE for row in rows for c in row[1:]):
            yield SYSTEMS[system], table(["calibrated on", *(f"run on {b}" for b in tasks)], rows)
