"""Thresholds, rankings and frequent sets, from similarities."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from admg.draft_rules import DropRule
from admg.plan import choose_dropped
from jobs.bench.paper.calibration import frequent_sets, level_for, ranked_set
from jobs.bench.paper.hindsight import swapped


def drawn(seed: int, prompts: int, layers: int) -> list[list[float]]:
    values = random.Random(seed)
    # Five digits: thresholds have six, and one lies between any two that differ.
    return [[round(values.uniform(0.9, 0.99), 5) for _ in range(layers)] for _ in range(prompts)]


def mean_dropped(similarities: list[list[float]], threshold: float, rule: DropRule) -> float:
    at = DropRule(threshold=threshold, fill_gaps=rule.fill_gaps, drop_tail=rule.drop_tail)
    return sum(len(choose_dropped(s, at)) for s in similarities) / len(similarities)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(4, 12), st.booleans())
@example(seed=1918, prompts=1, layers=5, rules=True)
def test_no_other_level_is_nearer(seed: int, prompts: int, layers: int, rules: bool) -> None:
    similarities = drawn(seed, prompts, layers)
    rule = DropRule(threshold=0.0, fill_gaps=rules, drop_tail=rules)
    wanted = random.Random(seed).randint(1, layers - 2)
    found = level_for(similarities, wanted, rule)
    gap = abs(mean_dropped(similarities, found, rule) - wanted)
    own = {v for row in similarities for v in row}
    values = sorted(own | {v + rule.margin for v in own})
    levels = [values[0] - 1e-3, *((a + b) / 2 for a, b in pairwise(values)), values[-1] + 1e-3]
    tried = [mean_dropped(similarities, level, rule) for level in levels]
    assert gap <= min(abs(n - wanted) for n in tried) + 1e-9


def test_one_set_for_all_is_that_of_the_mean() -> None:
    similarities = [[0.1, 0.9, 0.5, 0.95, 0.1], [0.1, 0.5, 0.97, 0.96, 0.1]]
    assert ranked_set(similarities, 1) == (3,)
    assert ranked_set(similarities, 2) == (2, 3)


def test_the_sets_chosen_most_often() -> None:
    sets = [[1, 2], [2, 1], [2, 3], [3, 4], [1, 3]]
    # Most frequent layers 1, 2 and 3, three times each: the two with the lowest numbers.
    assert frequent_sets(sets, 1) == [(1, 2)]
    assert frequent_sets(sets, 3) == [(1, 2), (1, 3), (2, 3)]


def test_swaps_lead_to_a_better_set() -> None:
    """Worth counts layers of a hidden best set: from anywhere, enough swaps must find it."""
    hidden, judged = {2, 5, 7}, []

    def worth(layers: tuple[int, ...]) -> float:
        judged.append(layers)
        return len(hidden & set(layers))

    assert swapped((1, 3, 4), range(1, 9), worth, 200, seed=0) == (2, 5, 7)
    assert len(judged) == len(set(judged)) and {len(s) for s in judged} == {3}
    assert all(set(s) <= set(range(1, 9)) for s in judged)
    assert swapped((3, 1), range(1, 9), lambda layers: 0.0, 20, seed=0) == (
        1,
        3,
    )  # no gain, no swap
    assert swapped((1, 2), (1, 2), worth, 5, seed=0) == (1, 2)
