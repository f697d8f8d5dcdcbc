"""The whole run: device, costs, text; an interruption at any time leaves what is known by then."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.bench.gpu import text as texts
from jobs.bench.gpu.cells import Grid, grid_of
from jobs.bench.gpu.clock import Clock, LeftOutError, ask
from jobs.bench.gpu.measuring import Costs, measure
from jobs.bench.gpu.settings import Settings
from jobs.bench.gpu.tiny_model import SHAPE, tiny_model
from jobs.bench.machine import commit, machine, versions
from jobs.bench.process import Worker
from pipeline.cache import cache_dir
from pipeline.device import ALLOCATOR, EXPANDABLE

Say = Callable[[str], None]
Kept = Callable[[], None]

# Of the time, where text is measured too, what the costs may use up.
COSTS_SHARE = 0.5
_PROBE_SECONDS = 60.0
# How long a part may still take to notice that its time is over.
_GRACE_SECONDS = 20.0


@dataclass
class Found:
    """What has been measured so far; `complete` once the run has come to its end."""

    settings: Settings
    grid: Grid
    started: str
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    costs: Costs = field(default_factory=Costs)
    text: texts.Text = field(default_factory=texts.Text)
    seconds: float = 0.0
    interrupted: bool = False
    complete: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing at all was measured."""
        return not self.costs.timed and not any(r.outcomes for r in self.text.reports)


def check_device(device: str) -> None:
    """Refuse a device that is not there; on "cpu" no process of this run sees another one.

    Raises:
        ValueError: torch sees no CUDA device.
    """
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    # As an actor has it: workers are to be what runs are.
    os.environ.setdefault(ALLOCATOR, EXPANDABLE)
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            "--device is cuda: torch sees no CUDA device here, so it must be cpu, with --tiny"
        )


def run(settings: Settings, say: Say, keep: Callable[[Found], None] = lambda _: None) -> Found:
    """Measure everything that there is time for; Ctrl-C ends it with what there is.

    `keep` is called after everything that was measured, and at the end.
    """
    clock = Clock(settings.minutes)
    found = Found(
        settings,
        grid_of(settings.shape, settings.tiny),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine(settings.threads, "bfloat16") | driver(),
        versions(settings.model),
        commit(),
    )
    late = threading.Event()

    def kept() -> None:
        found.seconds = clock.spent
        keep(found)

    try:
        with _ending(clock.left + _GRACE_SECONDS, late):
            _measure(found, clock, say, kept)
    except KeyboardInterrupt:
        found.interrupted = not late.is_set()
        if late.is_set():
            found.text.left_out["the rest"] = "it took longer than there was time"
    found.complete = not found.interrupted
    kept()
    return found


def _measure(found: Found, clock: Clock, say: Say, kept: Kept) -> None:
    settings = found.settings
    _probe(found, say)
    kept()
    if "dummy" in settings.parts:
        part = clock.part(COSTS_SHARE if "widened" in settings.parts else 1.0)
        with _kept(found.costs.left_out, "the rest of the costs", say):
            measure(found.grid, found.costs, part, settings.threads, say, kept)
    if "widened" in settings.parts:
        with _kept(found.text.left_out, "the rest of the real text", say):
            _text(found, clock, say, kept)


@contextmanager
def _ending(seconds: float, late: threading.Event) -> Iterator[None]:
    """Whatever still waits for something by then is interrupted, as Ctrl-C would; `late` is set."""

    def end() -> None:
        late.set()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    # What a shell starts in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


@contextmanager
def _kept(left_out: dict[str, str], what: str, say: Say) -> Iterator[None]:
    """Whatever breaks inside costs what would have come, and not what has been measured."""
    try:
        yield
    except Exception as error:
        say(traceback.format_exc())
        left_out[what] = f"{type(error).__name__}: {error}"


def _probe(found: Found, say: Say) -> None:
    say("probing the device")
    with Worker("probe", threads=found.settings.threads, module="jobs.bench.probe") as worker:
        try:
            found.machine |= ask(worker, _PROBE_SECONDS, "probe", dtype="bfloat16")
        except LeftOutError as error:
            found.costs.left_out["the device's peaks"] = str(error)


def _text(found: Found, clock: Clock, say: Say, kept: Kept) -> None:
    settings, text = found.settings, found.text
    with tempfile.TemporaryDirectory(prefix="admg-batch-bench-") as scratch:
        model, shape, folder = settings.model, settings.shape, settings.folder
        if settings.tiny:
            model, shape = str(tiny_model(Path(scratch) / "tiny")), SHAPE
        if settings.tiny:
            folder = Path(scratch) / "widened"
        elif folder is None:  # 20 GB that the next run need not make again
            folder = cache_dir() / f"widened-{shape}-{Path(model).name}"
        try:
            making = clock.part(0.5)
            wide = texts.widened_folder(model, shape, folder, settings.device, making, say)
            text.made_seconds = making.spent
        except LeftOutError as error:
            text.left_out["real text"] = str(error)
            say(f"left out: real text: {error}")
            return
        texts.measure_text(
            wide,
            text,
            texts.TINY if settings.tiny else texts.FULL,
            clock,
            say,
            kept,
            threads=settings.threads,
            data=settings.data,
            peer_python=settings.peer_python,
        )


def driver() -> dict[str, str]:
    """The driver and the device as nvidia-smi names them; nothing where there is none."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = done.stdout.strip().splitlines()
    parts = [part.strip() for part in lines[0].split(",")] if lines and not done.returncode else []
    return dict(zip(("gpu", "driver", "gpu_memory"), parts, strict=False))
