"""How sure a number is: the bootstrap over prompts, paired between systems.

Shapes: K sets that stand for one system (1 for most, several where sets are drawn at random),
N prompts, R resamples.

A number is a ratio of sums over prompts, such as tokens per target pass. Systems decode the same
prompts, so that a difference between two of them is resampled with the same prompts on both sides
(Efron and Tibshirani 1993, ch. 8); where a system is several random sets these are resampled too,
for another draw of sets is an error like another draw of prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
_LEVEL = 0.95

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its standard error and the bounds of its 95 % interval (percentiles)."""

    value: float
    error: float
    low: float
    high: float

    @property
    def apart(self) -> bool:
        """Whether the interval leaves 0 out; for differences."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Counts:
    """What a number is the ratio of: `over` and `under` [K, N], for each set and prompt."""

    over: Array
    under: Array

    @classmethod
    def of(cls, over: object, under: object) -> Counts:
        """From one list of prompts, or one for each set.

        Raises:
            ValueError: the two have different shapes, or there is no prompt.
        """
        a, b = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (over, under))
        if a.shape != b.shape or not a.size:
            raise ValueError(f"counts have the shapes {a.shape} and {b.shape}: they must be equal")
        return cls(a, b)

    @property
    def prompts(self) -> int:
        """N."""
        return int(self.over.shape[1])


def estimate(counts: Counts, *, seed: int, resamples: int = RESAMPLES) -> Estimate | None:
    """The ratio and its error; None where it has no denominator."""
    value = _ratio(counts.over.sum(), counts.under.sum())
    if np.isnan(value):
        return None
    return _summary(value, _resampled(counts, resamples, seed, seed + 1))


def difference(a: Counts, b: Counts, *, seed: int, resamples: int = RESAMPLES) -> Estimate | None:
    """a - b on the same prompts; None where one of them has no denominator.

    Raises:
        ValueError: they have different numbers of prompts.
    """
    if a.prompts != b.prompts:
        raise ValueError(f"{a.prompts} and {b.prompts} prompts: pairs need the same ones")
    value = _ratio(a.over.sum(), a.under.sum()) - _ratio(b.over.sum(), b.under.sum())
    if np.isnan(value):
        return None
    ours, theirs = (_resampled(c, resamples, seed, seed + i) for i, c in ((1, a), (2, b)))
    return _summary(value, ours - theirs)


def ratio(a: Counts, b: Counts, *, seed: int, resamples: int = RESAMPLES) -> Estimate | None:
    """a / b on the same prompts, for speedups; None where that is not a number."""
    if a.prompts != b.prompts:
        raise ValueError(f"{a.prompts} and {b.prompts} prompts: pairs need the same ones")
    value = _ratio(_ratio(a.over.sum(), a.under.sum()), _ratio(b.over.sum(), b.under.sum()))
    if np.isnan(value):
        return None
    ours, theirs = (_resampled(c, resamples, seed, seed + i) for i, c in ((1, a), (2, b)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return _summary(value, ours / theirs)


@lru_cache(maxsize=64)
def _often(items: int, resamples: int, seed: int) -> Array:
    """[R, items] how often each is picked in each resample; the same for every system."""
    picks = np.random.default_rng(seed).integers(0, items, (resamples, items))
    places = picks + items * np.arange(resamples)[:, None]
    counted = np.bincount(places.ravel(), minlength=items * resamples)
    return counted.reshape(resamples, items).astype(np.float64)


def _resampled(counts: Counts, resamples: int, seed: int, own_seed: int) -> Array:
    """[R] ratios; prompts are picked by `seed`, a system's sets by `own_seed`."""
    often = _often(counts.prompts, resamples, seed)
    over, under = often @ counts.over.T, often @ counts.under.T  # [R, K]
    sets = over.shape[1]
    drawn = _often(sets, resamples, own_seed) if sets > 1 else 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Array = (drawn * over).sum(1) / (drawn * under).sum(1)
    return ratios


def _summary(value: float, spread: Array) -> Estimate:
    known = spread[np.isfinite(spread)]
    if not len(known):
        return Estimate(value, 0.0, value, value)
    low, high = np.quantile(known, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return Estimate(float(value), float(known.std()), float(low), float(high))


def _ratio(over: float, under: float) -> float:
    return float(over / under) if under else float("nan")
