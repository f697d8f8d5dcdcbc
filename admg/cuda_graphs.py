"""CUDA graphs of whole rounds: captured once per kind of round, replayed from then on.

A round of a small batch is hundreds of short kernels, and starting them one by one takes longer
than they do. A captured round starts them all at once. The first round of a kind is played
operation by operation, which warms its libraries up, and captured afterwards (a capture runs
nothing, so no round is played twice); later ones are replayed. All graphs share one memory pool.
Where no more may be captured, rounds are played as the first one was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from admg.device_round import RoundKey

_LOG = logging.getLogger(__name__)
# Beyond these buckets a batch is padded to a multiple of the last one.
_BUCKETS = (1, 2, 4, 8, 16)
# What captures may hold of the device's memory.
_SHARE = 0.03


def bucket(sequences: int, most: int) -> int:
    """How many sequences a round of so many is padded to; `most` is a bucket of its own."""
    fitting = next((b for b in _BUCKETS if b >= sequences), None)
    if fitting is None:
        fitting = -(-sequences // _BUCKETS[-1]) * _BUCKETS[-1]
    return min(fitting, most)


class Recorder(Protocol):
    """Captures what a function does on the device."""

    def record(self, play: Callable[[], None]) -> Callable[[], None]:
        """Capture without running; what comes back repeats it."""

    @property
    def nbytes(self) -> int:
        """Bytes that all captures hold together."""


class CudaRecorder:
    """CUDA graphs in one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Of the model's device, which need not be the process's current one.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self.nbytes = 0

    def record(self, play: Callable[[], None]) -> Callable[[], None]:
        """One graph."""
        torch.cuda.empty_cache()  # a capture begins with that, and what it reserves is counted
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may use the device meanwhile.
        mode = "thread_local"
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode),
        ):
            play()
        self.nbytes += max(torch.cuda.memory_reserved(self._device) - before, 0)

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """How many graphs there may be, and what capturing them may take in seconds and bytes."""

    graphs: int = 96
    seconds: float = 120.0
    nbytes: int = 1 << 30

    @classmethod
    def of(cls, device: torch.device) -> GraphLimits:
        """With a share of the device's memory."""
        if device.type != "cuda":
            return cls()
        return cls(nbytes=int(_SHARE * torch.cuda.mem_get_info(device)[1]))


@dataclass(slots=True)
class GraphReport:
    """What has become of the rounds: how many graphs, what they took, who was played how."""

    graphs: int = 0
    capture_seconds: float = 0.0
    nbytes: int = 0
    replayed: int = 0
    eager: int = 0
    stopped: str | None = None
    by_key: dict[RoundKey, int] = field(default_factory=dict)


class RoundGraphs:
    """Plays rounds, from captures where there are any.

    Args:
        play: one round, operation by operation.
        recorder: captures; None: nothing is captured.
        limits: of all captures together.
    """

    def __init__(
        self,
        play: Callable[[RoundKey], None],
        recorder: Recorder | None,
        limits: GraphLimits | None = None,
    ) -> None:
        self._play = play
        self._recorder = recorder
        self._limits = limits or GraphLimits()
        self._replays: dict[RoundKey, Callable[[], None]] = {}
        self.report = GraphReport()

    def play(self, key: RoundKey) -> None:
        """One round of this kind, on whatever the buffers hold."""
        replay = self._replays.get(key)
        if replay is not None:
            replay()
            self.report.replayed += 1
            self.report.by_key[key] += 1
            return
        self._play(key)
        self.report.eager += 1
        self._capture(key)

    def prepare(self, keys: Iterable[RoundKey]) -> GraphReport:
        """Play and capture rounds ahead of time, those that take most memory first.

        The later, smaller ones then live in what the first ones have reserved. To be called while
        the buffers hold padding alone.
        """
        for key in sorted(keys, key=lambda k: (k.sequences * k.tokens, k.passes), reverse=True):
            if self._recorder is not None and key not in self._replays:
                self._play(key)
                self._capture(key)
        return self.report

    def _capture(self, key: RoundKey) -> None:
        report, limits = self.report, self._limits
        if self._recorder is None or report.stopped is not None:
            return
        start = time.perf_counter()
        try:
            self._replays[key] = self._recorder.record(lambda: self._play(key))
        except RuntimeError as error:  # memory, or an operation that no graph can hold
            report.stopped = f"an error: {error}"
        report.capture_seconds += time.perf_counter() - start
        report.nbytes, report.graphs = self._recorder.nbytes, len(self._replays)
        report.by_key.setdefault(key, 0)
        if report.graphs >= limits.graphs:
            report.stopped = f"{limits.graphs} graphs"
        elif report.nbytes >= limits.nbytes:
            report.stopped = f"{limits.nbytes} bytes"
        elif report.capture_seconds >= limits.seconds:
            report.stopped = f"{limits.seconds:g} seconds"
        if report.stopped is not None:
            _LOG.warning("no more rounds are captured, after %s", report.stopped)
