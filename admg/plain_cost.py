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
        """Time `step(sequences, context)` over the grid; the fastest repeat counts."""
        step(self.sizes[0], self.contexts[0])  # the first call pays for libraries warming up
        for size in self.sizes:
            for context in self.contexts:
                self._grid[size, context] = min(step(size, context) for _ in range(repeats))

    def estimate(self, sequences: int, context: float) -> float:
        """Seconds of a plain step, interpolated (and extrapolated past the grid's ends)."""
        by_size = [
            _interpolate(self.contexts, [self._grid[s, c] for c in self.contexts], context)
            for s in self.sizes
        ]
        return self._drift * max(_interpolate(self.sizes, by_size, sequences), 1e-9)

    def observe(self, sequences: int, context: float, seconds: float) -> None:
        """Take a real plain round into account."""
        ratio = seconds / self.estimate(sequences, context) * self._drift
        self._drift = DRIFT_DECAY * self._drift + (1 - DRIFT_DECAY) * ratio


def _interpolate(points: list[int], values: list[float], at: float) -> float:
    if len(points) == 1:
        return values[0]
    i = min(max(bisect_right(points, at), 1), len(points) - 1)
    x0, x1 = points[i - 1], points[i]
    return values[i - 1] + (values[i] - values[i - 1]) * (at - x0) / (x1 - x0)
