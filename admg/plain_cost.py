"""What a plain decoding step costs here: the yardstick of every row's speedup (DESIGN §4.5).

A small grid of (sequences, context) is timed in a warm-up; between its points the cost is
interpolated linearly. Real plain rounds, run now and then, keep a common drift factor fresh, so
that a machine that slows down does not turn into a drafter that looks slow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from admg.kv_arena import SLOT_GRAIN

DRIFT_DECAY = 0.8
SHORT_CONTEXT = 64
LONG_CONTEXT = 1024
# Room that a made-up sequence of the warm-up needs beside its context.
NEW_TOKENS = 2


class PlainCost:
    """Seconds of one plain step by (sequences, mean context in tokens)."""

    def __init__(self, sizes: list[int], contexts: list[int]) -> None:
        self.sizes = sizes
        self.contexts = contexts
        self._grid: dict[tuple[int, int], float] = {}
        self._drift = 1.0

    @classmethod
    def for_engine(cls, max_num_seqs: int, max_model_len: int, num_slots: int) -> PlainCost:
        """A grid from one sequence to a full batch, from short to middling contexts.

        Every point fits in `num_slots` slots of the arena.
        """
        most = min(max_num_seqs, num_slots // SLOT_GRAIN)
        room = num_slots // most // SLOT_GRAIN * SLOT_GRAIN - NEW_TOKENS
        longest = max(min(LONG_CONTEXT, max_model_len // 2, room), 1)
        return cls(sorted({1, min(4, most), most}), sorted({min(SHORT_CONTEXT, longest), longest}))

    @property
    def measured(self) -> bool:
        """Whether the warm-up has been run."""
        return bool(self._grid)

    def warm_up(self, step: Callable[[int, int], float], repeats: int = 2) -> None:
        """Time `step(sequences, context)` over the grid; the fastest repeat counts.

        A step never gets cheaper with more sequences or more context; where the clock says so it
        is noise, and taken as it stands it would make a slope that extrapolates below zero.
        """
        step(self.sizes[0], self.contexts[0])  # the first call pays for libraries warming up
        for i, size in enumerate(self.sizes):
            for j, context in enumerate(self.contexts):
                seconds = min(step(size, context) for _ in range(repeats))
                fewer = self._grid[self.sizes[i - 1], context] if i else 0.0
                shorter = self._grid[size, self.contexts[j - 1]] if j else 0.0
                self._grid[size, context] = max(seconds, fewer, shorter)

    def estimate(self, sequences: int, context: float) -> float:
        """Seconds of a plain step, interpolated, and extrapolated past the grid's upper ends."""
        by_size = [
            _interpolate(self.contexts, [self._grid[s, c] for c in self.contexts], context)
            for s in self.sizes
        ]
        return self._drift * _interpolate(self.sizes, by_size, sequences)

    def observe(self, sequences: int, context: float, seconds: float) -> None:
        """Take a real plain round into account."""
        ratio = seconds / self.estimate(sequences, context) * self._drift
        self._drift = DRIFT_DECAY * self._drift + (1 - DRIFT_DECAY) * ratio


def _interpolate(points: list[int], values: list[float], at: float) -> float:
    if len(points) == 1 or at <= points[0]:
        return values[0]
    i = min(max(bisect_right(points, at), 1), len(points) - 1)
    x0, x1 = points[i - 1], points[i]
    return values[i - 1] + (values[i] - values[i - 1]) * (at - x0) / (x1 - x0)
