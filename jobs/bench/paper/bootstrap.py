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
    picks = _picks(counts.prompts, resamples, seed)
    return _summary(value, _resampled(counts, picks, seed))


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
    picks = _picks(a.prompts, resamples, seed)
    return _summary(value, _resampled(a, picks, seed + 1) - _resampled(b, picks, seed + 2))


def ratio(a: Counts, b: Counts, *, seed: int, resamples: int = RESAMPLES) -> Estimate | None:
    """a / b on the same prompts, for speedups; None where that is not a number."""
    if a.prompts != b.prompts:
        raise ValueError(f"{a.prompts} and {b.prompts} prompts: pairs need the same ones")
    value = _ratio(_ratio(a.over.sum(), a.under.sum()), _ratio(b.over.sum(), b.under.sum()))
    if np.isnan(value):
        return None
    picks = _picks(a.prompts, resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = _resampled(a, picks, seed + 1) / _resampled(b, picks, seed + 2)
    return _summary(value, spread)


def _picks(prompts: int, resamples: int, seed: int) -> Array:
    """[R, N] indices of prompts; the same for every system."""
    return np.random.default_rng(seed).integers(0, prompts, (resamples, prompts))


def _resampled(counts: Counts, picks: Array, seed: int) -> Array:
    """[R] ratios."""
    sets = counts.over.shape[0]
    if sets == 1:
        over, under = counts.over[0][picks].sum(1), counts.under[0][picks].sum(1)
    else:
        # How often each prompt and each set was picked: [R, N] and [R, K].
        often = np.stack([np.bincount(p, minlength=counts.prompts) for p in picks])
        drawn = np.random.default_rng(seed).integers(0, sets, (len(picks), sets))
        weights = np.stack([np.bincount(d, minlength=sets) for d in drawn])
        over = np.einsum("rk,kn,rn->r", weights, counts.over, often)
        under = np.einsum("rk,kn,rn->r", weights, counts.under, often)
    with np.errstate(divide="ignore", invalid="ignore"):
        return over / under


def _summary(value: float, spread: Array) -> Estimate:
    known = spread[np.isfinite(spread)]
    if not len(known):
        return Estimate(value, 0.0, value, value)
    low, high = np.quantile(known, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return Estimate(float(value), float(known.std()), float(low), float(high))


def _ratio(over: float, under: float) -> float:
    return float(over / under) if under else float("nan")
