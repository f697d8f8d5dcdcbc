"""What a pass over a batch costs here: the yardstick of every row's speedup, and the controller's.

A small grid of (tokens per sequence, sequences, context) is timed in a warm-up; between its points
the cost is interpolated linearly. Real rounds keep drift factors fresh, so that a machine that
slows down does not turn into a drafter that looks slow (DESIGN §4.5): that of plain passes is the
machine's, which all others follow, and they have one of their own beside it for each number of
tokens. If each were known by its own passes alone, a machine that slows down while it decodes
plainly would turn into one whose drafts look cheap.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial

from admg.kv_arena import SLOT_GRAIN

DRIFT_DECAY = 0.8
# A hiccup of the machine is not its speed: no round counts as slower than this.
MOST_RATIO = 2.0
# But no machine is faster than it is: where a pass takes less than this share of its estimate,
# the warm-up was disturbed, and the estimate follows at once.
FASTER = 0.7
FASTER_DECAY = 0.5
# Nor is any pass free: what drift has fallen to 0 would never rise again.
LEAST_DRIFT = 1e-3
# Two times of a pass that differ by less agree.
AGREE = 1.15
SHORT_CONTEXT = 64
LONG_CONTEXT = 1024
# Tokens per sequence of the passes that are timed where drafts of varying length are weighed.
DRAFTED = (1, 2, 5, 9)


class PassCost:
    """Seconds of one pass by (sequences, mean context in tokens, mean tokens per sequence).

    `longest` is a context that a full batch may come to have, beyond those that are timed. Where
    these are no passes of the target, `machine` are: it says how fast the machine is now.
    """

    def __init__(
        self,
        sizes: list[int],
        contexts: list[int],
        tokens: tuple[int, ...],
        longest: int | None = None,
        machine: PassCost | None = None,
    ) -> None:
        self.sizes = sizes
        self.contexts = contexts
        self.tokens = tokens
        self.longest = contexts[-1] if longest is None else longest
        self._machine = machine
        self._grid: dict[tuple[int, int, int], float] = {}
        self._drift = dict.fromkeys(tokens, 1.0)
        self._seen = dict.fromkeys(tokens, 0)
        # What the latest passes say of the drift.
        self._latest = {t: [1.0, 1.0] for t in tokens}
        # The latest estimate's sequences, context and speed of the machine; its costs by tokens.
        self._asked: tuple[tuple[int, float, float], list[float]] | None = None

    @classmethod
    def for_engine(
        cls,
        max_num_seqs: int,
        max_model_len: int,
        num_slots: int,
        tokens: tuple[int, ...] = (1,),
        machine: PassCost | None = None,
    ) -> PassCost:
        """A grid from one sequence to a full batch, from short to middling contexts.

        Every point fits in `num_slots` slots of the arena and in `max_model_len` tokens.
        """
        most = min(max_num_seqs, num_slots // SLOT_GRAIN)
        room = min(num_slots // most // SLOT_GRAIN * SLOT_GRAIN, max_model_len)
        fitting = tuple(t for t in tokens if t == 1 or t < room // 2)
        timed = max(min(LONG_CONTEXT, max_model_len // 2, room - fitting[-1] - 1), 1)
        contexts = sorted({min(SHORT_CONTEXT, timed), timed})
        return cls(sorted({1, min(4, most), most}), contexts, fitting, room, machine)

    @property
    def measured(self) -> bool:
        """Whether the warm-up has been run."""
        return bool(self._grid)

    def warm_up(self, step: Callable[[int, int, int], float], repeats: int = 4) -> None:
        """Time `step(sequences, context, tokens)` over the grid; the fastest repeat counts.

        At most `repeats`, and no more once two agree.

        A pass never gets cheaper with more tokens, sequences or context; where the clock says so
        it is noise, and taken as it stands it would make a slope that extrapolates below zero.
        """
        step(self.sizes[0], self.contexts[0], 1)  # the first call pays for libraries warming up
        for k, tokens in enumerate(self.tokens):
            for i, size in enumerate(self.sizes):
                for j, context in enumerate(self.contexts):
                    seconds = _fastest(partial(step, size, context, tokens), repeats)
                    below = [
                        self._grid[size, context, self.tokens[k - 1]] if k else 0.0,
                        self._grid[self.sizes[i - 1], context, tokens] if i else 0.0,
                        self._grid[size, self.contexts[j - 1], tokens] if j else 0.0,
                    ]
                    self._grid[size, context, tokens] = max(seconds, *below)
        self._asked = None

    def estimate(self, sequences: int, context: float, tokens: float = 1) -> float:
        """Seconds of a pass, interpolated, and extrapolated past the grid's upper ends."""
        # A controller asks for many numbers of tokens of one batch.
        batch = (sequences, context, self.slowness)
        if self._asked is None or self._asked[0] != batch:
            by_tokens = [self._now(t) * self._at(sequences, context, t) for t in self.tokens]
            self._asked = (batch, by_tokens)
        return _interpolate(self.tokens, self._asked[1], tokens)

    def observe(self, sequences: int, context: float, seconds: float, tokens: float = 1) -> None:
        """Take a real pass into account, for passes of about as many tokens.

        Plain passes alone move the estimate of plain passes: it is the yardstick. They move all
        others with it, whose own passes then say what they cost beside it. Of the last three
        passes of a kind the middle one counts, so that a single slow one moves nothing; one that
        is much faster is believed at once.
        """
        drafted = tokens > 1 and len(self.tokens) > 1
        column = min(self.tokens[drafted:], key=lambda t: abs(t - tokens))
        drift = self._drift[column]
        implied = drift * seconds / self.estimate(sequences, context, tokens)
        self._latest[column] = [*self._latest[column][-2:], implied]
        if implied >= FASTER * drift:
            implied = sorted(self._latest[column])[1]
        ratio = implied / drift
        # A running mean at first: a warm-up among a job's other beginnings is soon put right.
        self._seen[column] += 1
        decay = min(DRIFT_DECAY, 1 - 1 / self._seen[column])
        if ratio < FASTER:
            decay = min(decay, FASTER_DECAY)
        drift *= decay + (1 - decay) * min(ratio, MOST_RATIO)
        self._drift[column] = max(drift, LEAST_DRIFT)
        self._asked = None

    def table(self) -> list[tuple[int, int, int, float]]:
        """What passes cost now: (sequences, context, tokens, seconds) for each point timed."""
        return [(s, c, t, self._now(t) * x) for (s, c, t), x in sorted(self._grid.items())]

    @property
    def slowness(self) -> float:
        """How much longer the target's plain passes take now than in the warm-up."""
        return self._drift[self.tokens[0]] if self._machine is None else self._machine.slowness

    def _now(self, tokens: int) -> float:
        """How much longer passes of so many tokens take now than in the warm-up."""
        if self._machine is None and tokens == self.tokens[0]:
            return self._drift[tokens]
        return self._drift[tokens] * self.slowness

    def _at(self, sequences: int, context: float, tokens: int) -> float:
        by_size = [
            _interpolate(self.contexts, [self._grid[s, c, tokens] for c in self.contexts], context)
            for s in self.sizes
        ]
        return _interpolate(self.sizes, by_size, sequences)


def _fastest(step: Callable[[], float], repeats: int) -> float:
    """The shortest of some times, which another one confirms if there may be so many."""
    times = sorted(step() for _ in range(min(repeats, 2)))
    while len(times) < repeats and times[1] > AGREE * times[0]:
        times = sorted([*times, step()])
    return times[0]


def _interpolate(points: list[int] | tuple[int, ...], values: list[float], at: float) -> float:
    if len(points) == 1 or at <= points[0]:
        return values[0]
    i = min(max(bisect_right(points, at), 1), len(points) - 1)
    x0, x1 = points[i - 1], points[i]
    return values[i - 1] + (values[i] - values[i - 1]) * (at - x0) / (x1 - x0)
