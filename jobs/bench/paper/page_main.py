"""The page's main tables: every system on every kind of text, and who was calibrated on what."""

from __future__ import annotations

from collections.abc import Iterator

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
    turn_speed,
)
from jobs.bench.paper.record import Record
from jobs.bench.paper.variants import CHANGING, SYSTEMS
from jobs.devices import GPUS
from jobs.evaluation.tasks import TASKS

_COMPARED = ("best-fixed", "random")
# One set at any moment for all rows, whichever set a row ended with.
_TOGETHER = ("swift",)
_CALIBRATED = {"draft-verify": "Draft & Verify's sets", "admg": "ADMG's thresholds"}


def main_table(record: Record, task: str, law: str) -> str:
    """What was counted of every system on one kind of text under one law."""
    head = ["system", "tokens per target pass", "minus plain", "accepted", "drafted per pass"]
    head += ["layers dropped", "weights saved, MB", "KV saved, MB", "identical rows"]
    plain = system_rows(record, "plain", task, law)
    rows = []
    for system, name in SYSTEMS.items():
        sets = system_rows(record, system, task, law)
        if sets and plain:
            counted = _counted(record, sets, plain)
            if system in CHANGING:
                counted[-3:] = [NONE] * 3
            rows.append([name, *counted, _same(sets)])
    return table(head, rows)


def _counted(record: Record, sets: Sets, plain: Sets) -> list[str]:
    own = per_pass(sets)
    drafted = sum(sum(r.drafted) for r in sets)
    passes = sum(sum(r.passes) for r in sets)
    if not drafted:
        return [with_error(told(own)), *[NONE] * 6]
    left = left_out(sets, shape_of(record.about))
    dropped = sum(r.mean_dropped for r in sets) / len(sets)
    mlps = sum(r.mlps for r in sets) / len(sets)
    return [
        with_error(told(own)),
        signed(apart(own, per_pass(plain))),
        with_error(told(acceptance(sets))),
        number(drafted / max(1, passes), ".1f"),
        number(dropped, ".1f") + (f" + {mlps:.3g} MLPs" if mlps else ""),
        f"{megabytes(left.weight_bytes)} ({percent(left.weight_share)})",
        f"{megabytes(left.kv_bytes)} ({percent(left.kv_share)})",
    ]


def quality(record: Record, task: str, law: str) -> str | None:
    """A sentence on plain decoding's texts: their scores, and how many were cut."""
    text = record.about["texts"][task]
    rows = rows_in(record, "main/plain", task, law)
    scores = [m for m in text["metrics"] if rows is not None and m in rows.quality]
    if rows is not None and not text["metrics"]:
        return "pass@1 is not measured: the code that the model writes was not run (`--run-code`)."
    if rows is None or not scores:
        return None
    found = ", ".join(f"{m} {with_error(told(rows.score(m)), '.3f')}" for m in scores)
    said = (
        f"Quality of plain decoding's texts, everyone's where rows are identical: {found}; "
        f"{rows.ended.count('length')} of {len(rows)} texts were cut at {text['max_tokens']} tokens"
    )
    usual = TASKS[task].max_tokens
    if text["max_tokens"] < usual:
        said += f", short of the {usual} that the task allows: no measure of the model"
    return f"{said}."


def _same(sets: Sets) -> str:
    return f"{sum(sum(r.identical) for r in sets)}/{sum(map(len, sets))}"


def compared_table(record: Record, law: str) -> str:
    """In the published setting: how far systems are from the controls, in tokens per pass."""
    head = ["system, text", *(f"minus {SYSTEMS[c]}" for c in _COMPARED)]
    rows = []
    for system in ("admg", "admg-filled"):  # of equal size
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
            if not sets or system == "plain" or system in CHANGING:
                continue
            together = system in _TOGETHER
            found = [
                with_error(told(modelled(sets, shape, d, b, together=together)))
                for d in devices
                for b in BATCHES
            ]
            rows.append([f"{name}, {task}", *found])
    return table(head, rows)


def measured_table(record: Record) -> str | None:
    """Speedups by the clock of this run; None where nothing was timed."""
    ways = ["decoding", "end to end"] if record.about["timed_batch"] == 1 else ["whole turns"]
    head = ["system, text, law", *ways, "plain, tokens/s", "identical rows"]
    rows = []
    for system, name in SYSTEMS.items():
        for task in tasks_of(record):
            for law in both_laws():
                own = timed_rows(record, system, task, law)
                plain = timed_rows(record, "plain", task, law)
                if not own or system == "plain":
                    continue
                alone = len(ways) > 1
                found = [times(turn_speed(own), turn_speed(plain))]
                if alone:
                    both = (False, True)
                    found = [times(speed(own, whole), speed(plain, whole)) for whole in both]
                reached = told(speed(plain, False) if alone else turn_speed(plain))
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
    for system, name in _CALIBRATED.items():
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
            yield name, table(["calibrated on", *(f"run on {b}" for b in tasks)], rows)
