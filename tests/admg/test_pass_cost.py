"""The yardstick of the speedup, on made-up step times: nothing here measures time."""

from __future__ import annotations

import pytest

from admg.kv_arena import SLOT_GRAIN
from admg.pass_cost import PassCost


def linear(sequences: int, context: int, tokens: int = 1) -> float:
    return 0.010 + 0.002 * sequences + 0.00001 * context + 0.003 * (tokens - 1)


@pytest.fixture
def cost() -> PassCost:
    cost = PassCost([1, 4, 16], [64, 1024], (1, 4, 9))
    assert not cost.measured
    cost.warm_up(linear)
    assert cost.measured
    return cost


def test_between_and_beyond_the_points_it_is_linear(cost: PassCost) -> None:
    for sequences in (1, 2, 4, 7, 16, 24):
        for context in (64, 300.5, 1024, 4000):
            expected = 0.010 + 0.002 * sequences + 0.00001 * context
            assert cost.estimate(sequences, context) == pytest.approx(expected)
        # Below the shortest context nothing is extrapolated.
        assert cost.estimate(sequences, 2) == pytest.approx(cost.estimate(sequences, 64))


def test_it_interpolates_between_neighbouring_points() -> None:
    cost = PassCost([1, 3, 5], [10], (1,))
    times = {1: 1.0, 3: 2.0, 5: 7.0}
    cost.warm_up(lambda sequences, *_: times[sequences])
    assert cost.estimate(2, 10) == pytest.approx(1.5)
    assert cost.estimate(4, 10) == pytest.approx(4.5)
    assert cost.estimate(3, 99) == pytest.approx(2.0)  # one context alone tells of no slope


def test_the_fastest_repeat_counts_and_is_repeated_until_another_agrees() -> None:
    calls: dict[tuple[int, int], int] = {}
    hiccups = {(8, 100): [3.0, 1.6, 1.0, 1.05]}

    def noisy(sequences: int, context: int, _: int) -> float:
        nth = calls[sequences, context] = calls.get((sequences, context), 0) + 1
        times = hiccups.get((sequences, context), [])
        return linear(sequences, context) * (times[nth - 1] if nth <= len(times) else 1)

    cost = PassCost([1, 8], [10, 100], (1,))
    cost.warm_up(noisy)
    # One call more at the first point: libraries warm up.
    assert calls == {(1, 10): 3, (1, 100): 2, (8, 10): 2, (8, 100): 4}
    assert cost.estimate(8, 100) == pytest.approx(linear(8, 100))


def test_real_rounds_move_all_estimates_together(cost: PassCost) -> None:
    before = cost.estimate(4, 500), cost.estimate(16, 100)
    cost.observe(4, 500, 3 * before[0])
    assert cost.estimate(4, 500) == before[0], "one round alone is a hiccup"
    cost.observe(4, 500, 3 * before[0])
    assert before[0] < cost.estimate(4, 500) < 3 * before[0]
    for _ in range(60):
        cost.observe(4, 500, 3 * before[0])
    assert cost.estimate(4, 500) == pytest.approx(3 * before[0], rel=1e-3)
    assert cost.estimate(16, 100) == pytest.approx(3 * before[1], rel=1e-3)
    for _ in range(60):
        cost.observe(16, 100, before[1])
    assert cost.estimate(4, 500) == pytest.approx(before[0], rel=1e-3)


def test_hiccups_are_not_the_machine(cost: PassCost) -> None:
    """Every fifth round takes ten times as long: the estimate stays where it is."""
    before = cost.estimate(4, 500)
    for i in range(100):
        cost.observe(4, 500, before * (10.0 if i % 5 == 0 else 1.0))
        assert cost.estimate(4, 500) == pytest.approx(before)


def test_rounds_that_agree_change_nothing(cost: PassCost) -> None:
    for _ in range(5):
        cost.observe(7, 200, linear(7, 200))
    assert cost.estimate(16, 1024) == pytest.approx(linear(16, 1024))


def test_a_noisy_warm_up_breaks_no_estimate() -> None:
    """The longer context came out faster, as it does where neighbours share the machine.

    Extrapolated, such a slope reaches 0; one real round there must not blow up every estimate.
    """
    cost = PassCost([1, 4], [64, 1024], (1,))
    cost.warm_up(lambda sequences, context, _: 0.050 if context == 64 else 0.040)
    assert cost.estimate(1, 8000) > 0.004
    cost.observe(1, 8000, 0.060)
    assert 0.01 < cost.estimate(1, 64) < 0.5


@pytest.mark.parametrize("max_num_seqs", [1, 2, 4, 16, 256])
@pytest.mark.parametrize(
    ("max_model_len", "num_slots"), [(2, 64), (64, 64), (512, 128), (512, 200_000), (8192, 160)]
)
def test_the_grid_fits_the_engine(max_num_seqs: int, max_model_len: int, num_slots: int) -> None:
    cost = PassCost.for_engine(max_num_seqs, max_model_len, num_slots)
    assert cost.sizes == sorted(set(cost.sizes)) and cost.contexts == sorted(set(cost.contexts))
    assert cost.sizes[0] == 1 and cost.sizes[-1] <= max_num_seqs
    assert cost.contexts[0] >= 1 and cost.contexts[-1] <= max(max_model_len, 2)
    assert cost.contexts[-1] <= cost.longest <= max(max_model_len, 2)
    extent = -(-cost.contexts[-1] // SLOT_GRAIN) * SLOT_GRAIN  # what a sequence takes at least
    assert cost.sizes[-1] * extent <= num_slots
    if num_slots == 200_000:
        assert cost.sizes[-1] == max_num_seqs


def test_a_disturbed_warm_up_is_soon_forgotten() -> None:
    """The warm-up came out eight times too slow: a few real rounds put that right."""
    cost = PassCost([1, 4], [64, 1024], (1, 2, 5, 9))
    cost.warm_up(lambda *shape: 8 * linear(*shape))
    for _ in range(8):
        cost.observe(4, 500, linear(4, 500))
    assert cost.estimate(4, 500) < 1.5 * linear(4, 500)
    assert cost.estimate(4, 500, 5) < 1.5 * linear(4, 500, 5), "the machine was slow for all"


def test_a_slow_machine_is_slow_for_drafts_too(cost: PassCost) -> None:
    """It is found out in plain rounds; drafts must not look cheap until some are tried."""
    own = PassCost([1, 16], [64, 1024], (1,), machine=cost)
    own.warm_up(lambda *shape: linear(*shape) / 2)
    plain, drafted, draft = cost.estimate(4, 500), cost.estimate(4, 500, 6), own.estimate(4, 500)
    for _ in range(60):
        cost.observe(4, 500, 3 * plain)
    assert cost.slowness == own.slowness == pytest.approx(3, rel=1e-3)
    assert cost.estimate(4, 500, 6) == pytest.approx(3 * drafted, rel=1e-3)
    assert own.estimate(4, 500) == pytest.approx(3 * draft, rel=1e-3)
    assert {k[:3]: k[3] for k in own.table()}[1, 64, 1] == pytest.approx(1.5 * linear(1, 64))
    # What they cost beside plain ones is told by their own passes.
    for _ in range(60):
        cost.observe(4, 500, 6 * drafted, 6)
        own.observe(4, 500, draft)
    assert cost.estimate(4, 500) == pytest.approx(3 * plain, rel=1e-3)
    assert cost.estimate(4, 500, 6) == pytest.approx(6 * drafted, rel=0.1)
    assert own.estimate(4, 500) == pytest.approx(draft, rel=1e-3)
    assert own.slowness == pytest.approx(3, rel=1e-3)


def test_drafted_passes_do_not_move_the_yardstick(cost: PassCost) -> None:
    before = cost.estimate(4, 500)
    for _ in range(50):
        cost.observe(4, 500, 3 * cost.estimate(4, 500, 5), 5)
    assert cost.estimate(4, 500) == before
    assert cost.estimate(4, 500, 5) > 2 * linear(4, 500, 5)


def test_passes_that_took_no_time_are_not_free_for_ever(cost: PassCost) -> None:
    for _ in range(2000):
        cost.observe(4, 500, 0.0)
    assert cost.estimate(4, 500) > 0
    for _ in range(200):
        cost.observe(4, 500, linear(4, 500))
    assert cost.estimate(4, 500) == pytest.approx(linear(4, 500), rel=1e-3)
