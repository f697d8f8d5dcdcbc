"""What a plain decoding step costs here: the yardstick of every row's speedup (DESIGN §4.5).

A small grid of (sequences, context) is timed in a warm-up; between its points the cost is
interpolated linearly. Real plain rounds, run now and then, keep a common drift factor fresh, so
that a machine that slows down does not turn into a drafter that looks slow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

DRIFT_DECAY = 0.8


class PlainCost:
    """Seconds of one plain step by (sequences, mean context in tokens)."""

    def __init__(self, sizes: list[int], contexts: list[int]) -> None:
        self.sizes = sizes
        self.contexts = contexts
        self._grid: dict[tuple[int, int], float] = {}
        self._drift = 1.0

    @classmethod
    def for_engine(cls, max_num_seqs: int, max_model_len: int) -> PlainCost:
        """A grid from one sequence to a full batch, from short to middling contexts."""
        sizes = sorted({1, min(4, max_num_seqs), max_num_seqs})
        contexts = sorted({min(64, max_model_len // 2), min(1024, max_model_len // 2)})
        return cls(sizes, [max(c, 2) for c in contexts])

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
