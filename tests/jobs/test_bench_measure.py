"""The numbers of the benchmarks: every one of them from small cases worked out by hand."""

from __future__ import annotations

import pytest

from jobs.bench.measure import (
    Outcome,
    Shape,
    achieved,
    cell_numbers,
    median_of,
    ratios,
    time_shares,
)


def outcome(seconds: float, **fields: float | int | None) -> Outcome:
    known = {"sequences": 2, "prompt_tokens": 60, "completion_tokens": 20, "prefill_seconds": 1.0}
    return Outcome(seconds=seconds, **(known | fields))  # type: ignore[arg-type]


def test_rates_of_one_run() -> None:
    one = outcome(5.0, passes=9, drafted=40, accepted=10)
    assert one.tokens_per_second == 4.0
    assert one.prefill_tokens_per_second == 60.0
    # The first token of each of the two sequences belongs to its prefill.
    assert one.decode_tokens_per_second == 18 / 4
    assert one.mean_acceptance_length == 18 / 9
    assert one.draft_acceptance_rate == 0.25


@pytest.mark.parametrize("prefill", [None, 5.0, 6.0])
def test_no_decoding_rate_without_a_prefill_shorter_than_the_run(prefill: float | None) -> None:
    one = outcome(5.0, prefill_seconds=prefill)
    assert one.decode_tokens_per_second is None
    assert one.mean_acceptance_length is None
    assert one.draft_acceptance_rate is None


def test_ratios_pair_the_runs_of_a_repeat() -> None:
    """The machine slows down by a factor of ten: every ratio of a repeat stays what it is."""
    plain = [outcome(2.0), outcome(20.0), outcome(4.0)]
    other = [outcome(1.0), outcome(10.0), outcome(8.0)]
    assert ratios(other, plain) == [2.0, 2.0, 0.5]
    numbers = cell_numbers(other, plain)
    assert (numbers["ratio_to_plain"], numbers["ratio_low"], numbers["ratio_high"]) == (2, 0.5, 2)
    assert numbers["tokens_per_second"] == 20 / 8.0  # the median of 20, 2 and 2.5
    assert cell_numbers(plain, plain)["ratio_high"] == 1.0


def test_unequal_repeats_are_not_compared() -> None:
    with pytest.raises(ValueError):
        ratios([outcome(1.0)], [outcome(1.0), outcome(2.0)])


def test_a_number_that_one_repeat_lacks_is_not_reported() -> None:
    runs = [outcome(5.0), outcome(5.0, prefill_seconds=None)]
    assert median_of(runs, lambda o: o.prefill_tokens_per_second) is None
    assert median_of(runs, lambda o: o.tokens_per_second) == 4.0
    assert median_of([], lambda o: o.tokens_per_second) is None


def test_what_plain_decoding_reads_and_computes() -> None:
    shape = Shape(
        matmul_parameters=1000, bytes_per_parameter=2, kv_bytes_per_token=8, attention_width=16
    )
    runs = [outcome(5.0, rounds=3, prefill_seconds=2.0)]
    got = achieved(runs, shape, lengths=[5, 7], max_tokens=4)
    # Three steps over contexts of 6, 7, 8 and 8, 9, 10 tokens, the new token included.
    contexts = 6 + 7 + 8 + 8 + 9 + 10
    assert got.decode_gbs == pytest.approx((3 * 2000 + contexts * 8) / 3 / 1e9)
    assert got.decode_gflops == pytest.approx((2 * 1000 * 6 + 4 * 16 * contexts) / 3 / 1e9)
    pairs = sum(range(1, 6)) + sum(range(1, 8))
    assert got.prefill_gflops == pytest.approx((2 * 1000 * 12 + 4 * 16 * pairs) / 2 / 1e9)
    assert achieved([outcome(5.0)], shape, [5, 7], 4).decode_gbs is None


def test_shares_of_the_time_add_up() -> None:
    runs = [outcome(10.0, draft_seconds=4.0, verify_seconds=3.0)] * 2
    assert time_shares(runs) == pytest.approx(
        {"prefill": 0.1, "draft": 0.4, "verify": 0.3, "elsewhere": 0.2}
    )
    assert time_shares([*runs, outcome(10.0)]) is None
