"""The bootstrap: pairs are pairs, intervals hold what they should, and seeds decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.bench.paper.bootstrap import Counts, difference, estimate, ratio

whole = st.integers(1, 50)
prompts = st.lists(st.tuples(whole, whole), min_size=1, max_size=12)


def counts(rows: list[tuple[int, int]]) -> Counts:
    return Counts.of([a for a, _ in rows], [b for _, b in rows])


@settings(max_examples=40, deadline=None)
@given(prompts, st.integers(0, 1000))
def test_the_value_is_the_ratio_of_sums_and_lies_among_the_prompts(rows, seed) -> None:
    found = estimate(counts(rows), seed=seed, resamples=200)
    assert found is not None
    assert found.value == pytest.approx(sum(a for a, _ in rows) / sum(b for _, b in rows))
    single = [a / b for a, b in rows]
    assert min(single) - 1e-9 <= found.low <= found.high <= max(single) + 1e-9
    assert found == estimate(counts(rows), seed=seed, resamples=200)


@settings(max_examples=30, deadline=None)
@given(prompts, st.integers(2, 9))
def test_scaling_scales_and_a_system_is_no_better_than_itself(rows, times) -> None:
    own = counts(rows)
    more = Counts.of(times * own.over, own.under)
    a, b = (estimate(c, seed=3, resamples=100) for c in (own, more))
    assert a is not None and b is not None
    assert (b.value, b.error, b.low) == pytest.approx(
        (times * a.value, times * a.error, times * a.low)
    )
    nothing = difference(own, own, seed=3, resamples=100)
    assert nothing is not None
    # The same prompts on both sides: no noise is left, however the prompts differ.
    assert (nothing.value, nothing.error, nothing.low, nothing.high) == (0, 0, 0, 0)
    gain = ratio(more, own, seed=3, resamples=100)
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == pytest.approx((times, times, times))
    assert not nothing.apart


@settings(max_examples=30, deadline=None)
@given(prompts, prompts, st.randoms(use_true_random=False))
def test_the_order_of_sums_does_not_matter_and_signs_turn(rows, others, random) -> None:
    n = min(len(rows), len(others))
    a, b = counts(rows[:n]), counts(others[:n])
    one, two = difference(a, b, seed=5, resamples=150), difference(b, a, seed=5, resamples=150)
    assert one is not None and two is not None
    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low))


@settings(max_examples=20, deadline=None)
@given(prompts)
def test_equal_sets_are_as_good_as_one(rows) -> None:
    one = counts(rows)
    three = Counts.of(np.repeat(one.over, 3, 0), np.repeat(one.under, 3, 0))
    a, b = (estimate(c, seed=1, resamples=100) for c in (one, three))
    assert a is not None and b is not None
    assert (a.value, a.low, a.high, a.error) == pytest.approx((b.value, b.low, b.high, b.error))


def test_sets_that_differ_add_to_the_error() -> None:
    prompts = 30
    over = np.array([[10.0] * prompts, [30.0] * prompts])
    found = estimate(Counts.of(over, np.full_like(over, 10.0)), seed=0)
    assert found is not None
    # Two sets, drawn twice with replacement: 1, 2 or 3, with chances 1/4, 1/2, 1/4.
    assert (found.value, found.low, found.high) == (2.0, 1.0, 3.0)
    assert found.error == pytest.approx(0.5**0.5, abs=0.03)


def test_the_error_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = estimate(Counts.of(values, np.ones(400)), seed=2)
    assert found is not None
    assert found.error == pytest.approx(values.std() / 20, rel=0.06)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """250 draws of 25 prompts; an honest 95 % interval holds the truth in 83 to 100 % of them.

    Percentile intervals are a little narrow at this size. Seeded, so this never flickers.
    """
    random = np.random.default_rng(7)
    held = 0
    for i in range(250):
        passes = random.integers(5, 20, 25)
        tokens = passes * random.gamma(8.0, 0.25, 25)
        found = estimate(Counts.of(tokens, passes), seed=i, resamples=300)
        assert found is not None
        held += found.low <= 2.0 <= found.high
    assert 0.86 <= held / 250 <= 0.98


def test_pairs_see_what_two_separate_errors_would_hide() -> None:
    random = np.random.default_rng(3)
    passes = random.integers(10, 20, 20).astype(float)
    level = random.uniform(1.0, 4.0, 20)  # prompts differ far more than systems do
    a = Counts.of(passes * (level + 0.1), passes)
    b = Counts.of(passes * level, passes)
    gap, one = difference(a, b, seed=0), estimate(a, seed=0)
    assert gap is not None and one is not None
    assert gap.apart and gap.value == pytest.approx(0.1) and one.error > 10 * gap.error


def test_what_has_no_denominator_has_no_number() -> None:
    nothing = Counts.of([0, 0], [0, 0])
    assert estimate(nothing, seed=0) is None
    assert difference(nothing, nothing, seed=0) is None
    assert ratio(nothing, Counts.of([1, 2], [1, 1]), seed=0) is None
    # Resamples without a denominator are left out; the others count.
    some = estimate(Counts.of([0, 2], [0, 1]), seed=0)
    assert some is not None and (some.value, some.low, some.high) == (2, 2, 2)
    with pytest.raises(ValueError, match="2 and 1 prompts"):
        difference(nothing, Counts.of([1], [1]), seed=0)
    with pytest.raises(ValueError, match="shapes"):
        Counts.of([1, 2], [1])
