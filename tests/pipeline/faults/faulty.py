"""A stand-in engine with faults: words in a prompt make it die, hang or run out of memory.

Faults that happen only so often leave a file for each time, which outlives the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from admg.request import Completion, Request
from tests.pipeline.standin import StandIn, StandInEngine

EXIT, KILL, SEGV, RAISE = "DIE-EXIT", "DIE-KILL", "DIE-SEGV", "DIE-RAISE"
HANG, GRIP, ENDLESS, HUGE = "HANG-STEP", "HANG-LOCK", "NO-END", "HUGE-ROW"


def happens(folder: str, what: str, times: int) -> bool:
    """Whether a fault that strikes so many times, in whatever process, strikes now."""
    for i in range(times):
        try:
            os.close(os.open(Path(folder) / f"{what}-{i}", os.O_CREAT | os.O_EXCL))
            return True
        except FileExistsError:
            continue
    return False


def times(folder: Path | str, what: str) -> int:
    """How often a fault has struck."""
    return len(list(Path(folder).glob(f"{what}-*")))


def run_out_of_memory() -> None:
    """As torch does on CPUs."""
    import torch

    torch.empty(2**60, dtype=torch.uint8)


class FaultyEngine(StandInEngine):
    def __init__(self, factory: FaultyStandIn) -> None:
        super().__init__(factory)
        self._faults = factory

    def step(self) -> list[Completion]:
        free = self._faults.max_num_seqs - len(self._running)
        coming = [request for _, request in list(self._waiting)[:free]]
        for request in (*coming, *(request for request, _ in self._running.values())):
            self._strike(request)
        done = super().step()
        f = self._faults
        if len(self._running) > f.memory_rows or (f.ooms and happens(f.folder, "oom", f.ooms)):
            run_out_of_memory()
        if f.sticky and happens(f.folder, "sticky", f.sticky):
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nhint")
        return done

    def _strike(self, request: Request) -> None:
        text = bytes(i for i in request.prompt_token_ids if i < 256).decode()
        if EXIT in text:
            os._exit(1)
        if KILL in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if SEGV in text:
            ctypes.string_at(0)
        if RAISE in text:
            raise RuntimeError("the stand-in's matmul broke")
        if HUGE in text:
            run_out_of_memory()
        if HANG in text:
            time.sleep(3600)
        if GRIP in text:
            ctypes.PyDLL(None).sleep(3600)


class EndlessEngine(FaultyEngine):
    """One row makes no tokens while the others do."""

    def step(self) -> list[Completion]:
        done = super().step()
        for request, ids in list(self._running.values()):
            text = bytes(i for i in request.prompt_token_ids if i < 256).decode()
            if ENDLESS in text and ids:
                ids.pop()
        return done


@dataclass(frozen=True)
class FaultyStandIn(StandIn):
    """`ooms`, `sticky` and `loads` are faults that strike so many times in all."""

    folder: str = ""
    memory_rows: int = 10**9
    ooms: int = 0
    sticky: int = 0
    loads: int = 0
    load_deaths: int = 0
    endless: bool = False

    def build(self, max_num_seqs: int | None = None) -> StandInEngine:
        if self.folder:
            happens(self.folder, "build", 10**6)
        if self.loads and happens(self.folder, "load", self.loads):
            raise OSError("the stand-in's weights are not there yet")
        if self.load_deaths and happens(self.folder, "load-death", self.load_deaths):
            os.kill(os.getpid(), signal.SIGKILL)
        super().build(max_num_seqs)
        factory = self if max_num_seqs is None else replace(self, max_num_seqs=max_num_seqs)
        return (EndlessEngine if self.endless else FaultyEngine)(factory)
