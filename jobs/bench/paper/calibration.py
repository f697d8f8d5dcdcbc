"""What drafters are calibrated with: thresholds and rankings by held-out prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from admg.draft_rules import DropRule
from admg.plan import choose_dropped

Similarities = Sequence[Sequence[float]]


def threshold_for(similarities: Similarities, wanted: float, rule: DropRule) -> float:
    """The level at which `rule` drops `wanted` layers on average over these prompts, or nearly.

    Args:
        similarities: [N][L].
        rule: its own level does not matter.
    """
    values = np.unique(np.asarray(similarities, dtype=np.float64))
    # Between two neighbours all levels drop the same, so the middle is the safest of them.
    levels = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    low, high = 0, len(levels) - 1
    while low < high:  # the higher the level, the fewer layers
        middle = (low + high + 1) // 2
        if _mean_dropped(similarities, float(levels[middle]), rule) >= wanted:
            low = middle
        else:
            high = middle - 1
    near = [i for i in (low, low + 1) if i < len(levels)]
    return float(
        min(
            (levels[i] for i in near),
            key=lambda t: abs(_mean_dropped(similarities, float(t), rule) - wanted),
        )
    )


def _mean_dropped(similarities: Similarities, threshold: float, rule: DropRule) -> float:
    at = replace(rule, threshold=threshold, quantile=None, count=None, attention=None)
    return sum(len(choose_dropped(s, at)) for s in similarities) / len(similarities)


def ranked_set(similarities: Similarities, count: int) -> tuple[int, ...]:
    """The layers that the mean similarity of these prompts chooses."""
    mean = np.asarray(similarities, dtype=np.float64).mean(0).tolist()
    return choose_dropped(mean, DropRule(count=count))


def frequent_sets(sets: Sequence[Sequence[int]], most: int) -> list[tuple[int, ...]]:
    """The sets that stand there most often, and the layers that stand in most of them as a set.

    All are of the size of the first one.
    """
    counted = Counter(tuple(sorted(s)) for s in sets)
    often = [s for s, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]
    layers = Counter(layer for s in sets for layer in s)
    ranked = sorted(layers, key=lambda layer: (-layers[layer], layer))
    majority = tuple(sorted(ranked[: len(sets[0])]))
    return list(dict.fromkeys([majority, *often[:most]]))
