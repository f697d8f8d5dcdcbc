"""What drafters are calibrated with: thresholds and rankings by held-out prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from admg.draft_rules import DropRule
from admg.plan import choose_dropped
from jobs.calibrate.admg import Profile, threshold_for

Similarities = Sequence[Sequence[float]]


def level_for(similarities: Similarities, wanted: float, rule: DropRule) -> float:
    """The threshold at which `rule` drops `wanted` layers on average over these prompts, or nearly.

    Args:
        similarities: [N][L].
        rule: its own level does not matter.
    """
    return threshold_for(Profile([tuple(s) for s in similarities]), wanted, rule)


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
