"""Goodness of fit for draws from known laws: the one statistic that all tests of laws use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

# With fixed seeds a test either always passes or always fails; the level only says how far a
# right sampler may lie from its law (one seed in ten thousand).
LEVEL = 1e-4
# Cells that expect fewer draws than this are pooled.
FEWEST = 5.0


class Fit(NamedTuple):
    """How well counts follow a law.

    `tv` is the total variation distance of the relative counts from the law, `floor` the mean of
    that of independent exact samples of equal size.
    """

    p_value: float
    tv: float
    floor: float

    @property
    def good(self) -> bool:
        return self.p_value > LEVEL and self.tv < 1.25 * self.floor


def chi_square(counts: np.ndarray, law: np.ndarray) -> float:
    """The p-value of Pearson's test; 0 where something impossible was drawn."""
    counts, law = np.ravel(counts).astype(float), np.ravel(law).astype(float)
    assert abs(law.sum() - 1) < 1e-6
    if counts[law == 0].any():
        return 0.0
    expected = law / law.sum() * counts.sum()
    order = np.argsort(expected)  # rarest first, so that what is pooled is the head of the list
    counts, expected = counts[order], expected[order]
    pooled = max(np.searchsorted(expected, FEWEST), 1)
    while expected[:pooled].sum() < FEWEST:
        pooled += 1
    counts = np.concatenate([[counts[:pooled].sum()], counts[pooled:]])
    expected = np.concatenate([[expected[:pooled].sum()], expected[pooled:]])
    assert len(expected) > 1, "too few draws to tell anything"
    return float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(expected) - 1))


def fit(counts: np.ndarray, law: np.ndarray) -> Fit:
    """Pearson's test, and the distance next to that of exact samplers."""
    counts, law = np.ravel(counts), np.ravel(law) / np.sum(law)
    n = int(counts.sum())
    exact = np.random.default_rng(0).multinomial(n, law, size=16)
    floor = np.abs(exact / n - law).sum(axis=1).mean() / 2
    return Fit(chi_square(counts, law), float(np.abs(counts / n - law).sum() / 2), float(floor))


def independent(a: np.ndarray, b: np.ndarray, law_a: np.ndarray, law_b: np.ndarray) -> float:
    """The p-value of the joint counts of two paired samples against the product of their laws."""
    joint = np.bincount(a * len(law_b) + b, minlength=len(law_a) * len(law_b))
    return chi_square(joint, np.outer(law_a, law_b))
