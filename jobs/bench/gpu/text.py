"""Real text on a widened model: the whole system beside plain decoding, then beside peers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from jobs.bench.gpu.clock import Clock, LeftOutError
from jobs.bench.measure import Outcome
from jobs.bench.process import Worker, WorkerError
from jobs.bench.runner import Plan, Report, check, loaded, time_cell
from jobs.bench.settings import Settings
from jobs.bench.systems import PLAIN, parse_systems
from jobs.bench.workloads import WORKLOADS, find_data

Say = Callable[[str], None]

MADE = "widening.json"
# What the prompts of a small run are cut to.
_TINY_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the text part: batches of our own systems, batches of peers, and the decoding."""

    batches: tuple[int, ...]
    peer_batches: tuple[int, ...]
    prompts: int
    max_tokens: int
    repeats: int


FULL = Sizes((8, 1, 32, 4), (8, 32), prompts=48, max_tokens=96, repeats=3)
TINY = Sizes((1, 4), (4,), prompts=4, max_tokens=8, repeats=2)


@dataclass
class Text:
    """What has been measured so far: a report of our systems, and one of peers."""

    reports: list[Report] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    layers: int | None = None
    made_seconds: float | None = None


def widened_folder(
    model: str, shape: str, folder: Path, device: str, clock: Clock, say: Say
) -> Path:
    """The widened checkpoint: `model` itself if it is one, else made in `folder`, which stays.

    In a process of its own, whose memory is free again afterwards.

    Raises:
        LeftOutError: it could not be made, or not in time.
    """
    if (Path(model) / MADE).is_file():
        return Path(model)
    command = [sys.executable, "-m", "jobs", "prepare", "widened", "--shape", shape]
    command += ["--model", model, "--output", str(folder), "--device", device]
    say(f"widening {model} to {shape}: {folder}")
    root = Path(__file__).resolve().parents[3]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=max(clock.left, 1.0)
        )
    except subprocess.TimeoutExpired as error:
        raise LeftOutError(
            f"the widened model was not made in {clock.spent:.0f} s (what there is of it stays: "
            f"{folder})"
        ) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise LeftOutError((lines or ["no reason given"])[-1].removeprefix("Error: "))
    return folder


def measure_text(
    model: Path,
    text: Text,
    sizes: Sizes,
    clock: Clock,
    say: Say,
    kept: Callable[[], None],
    *,
    threads: int,
    data: Path | None,
    peer_python: str | None,
) -> None:
    """Fill `text`: plain and auto in turn, then plain and the peers on the same prompts.

    `kept` is called after each cell.
    """
    from admg.families import read_model_config

    text.model, text.layers = model.name, read_model_config(model).num_layers
    workload = _workload(data)
    ours = ("auto",)
    peers = ("transformers", *(["vllm"] if peer_python else []))
    if not peer_python:
        text.left_out["vllm"] = "no --peer-python was given"
    for systems, batches, part in (
        (ours, sizes.batches, clock.part(0.65)),
        (peers, sizes.peer_batches, clock),
    ):
        settings = Settings(
            systems=parse_systems(systems),
            workloads=(workload,),
            batches=batches,
            temperatures=(0.0,),
            prompts=sizes.prompts,
            max_tokens=sizes.max_tokens,
            repeats=sizes.repeats if systems is ours else 1,
            dtype="bfloat16",
            model=str(model),
            threads=threads,
            data=data,
            peer_python=peer_python,
        )
        _measure(settings, text, part, say, kept, short=sizes is TINY)


def _measure(
    settings: Settings,
    text: Text,
    clock: Clock,
    say: Say,
    kept: Callable[[], None],
    short: bool,
) -> None:
    names = ", ".join(s.name for s in settings.systems)
    if not clock.left:
        text.left_out[names] = "no time was left"
        return
    try:
        plan = check(settings)
    except ValueError as error:
        text.left_out[names] = str(error)
        return
    if short:
        plan = replace(
            plan, prompts={w: [p[:_TINY_TOKENS] for p in ps] for w, ps in plan.prompts.items()}
        )
    todo = list(plan.settings.cells)
    try:
        with loaded(plan, say) as (workers, report), _ended_by(workers, clock):
            text.reports.append(report)
            while todo and clock.left:
                say(f"{todo[0]}: {names}")
                time_cell(todo[0], _fewer(plan, todo[0].batch), workers, report, say)
                todo.pop(0)
                kept()
            text.left_out |= report.failed
    except (WorkerError, ValueError) as error:
        late = "it took longer than there was time" if not clock.left else str(error)
        for cell in todo[:1]:
            text.left_out[f"{names}: {cell}"] = late
        todo = todo[1:]
    for cell in todo:
        text.left_out[f"{names}: {cell}"] = "no time was left"


@contextmanager
def _ended_by(workers: Mapping[str, Worker], clock: Clock) -> Iterator[None]:
    """End the workers when the time is over: whoever waits for one is told that it died."""

    def end() -> None:
        for worker in list(workers.values()):
            worker.close(at_once=True)

    timer = threading.Timer(clock.left, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _fewer(plan: Plan, batch: int) -> Plan:
    """With prompts for a batch and a half, so that places are refilled, and for four at least."""
    wanted = max(4, batch * 3 // 2)
    return replace(plan, prompts={w: ps[:wanted] for w, ps in plan.prompts.items()})


def _workload(data: Path | None) -> str:
    """News where there is a data folder with them, else the interpreter's own topics."""
    folder, file = find_data(data), WORKLOADS["summarization"].file
    assert file is not None
    return "summarization" if folder is not None and (folder / file).is_file() else "demo"


def figures(text: Text) -> list[dict[str, Any]]:
    """One entry for each cell and system; the ratios of decoding alone beside those of all."""
    from jobs.bench.show import cells

    found = []
    for report in text.reports:
        for entry, (cell, name) in zip(cells(report), report.outcomes, strict=True):
            rates = _decode_ratios(report.outcomes[cell, name], report.outcomes[cell, PLAIN])
            spread = (median(rates), min(rates), max(rates)) if rates else (None, None, None)
            names = ("decode_ratio", "decode_ratio_low", "decode_ratio_high")
            found.append(entry | dict(zip(names, spread, strict=True)))
    return found


def _decode_ratios(outcomes: Sequence[Outcome], plain: Sequence[Outcome]) -> list[float]:
    """Tokens per second of decoding relative to plain, repeat by repeat; empty if not known."""
    pairs = zip(outcomes, plain, strict=True)
    rates = [(a.decode_tokens_per_second, b.decode_tokens_per_second) for a, b in pairs]
    return [a / b for a, b in rates if a and b]
