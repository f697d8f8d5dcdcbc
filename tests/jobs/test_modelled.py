"""The roofline of a round, against numbers worked out by hand and against what must hold."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admg.plan import DraftPlan
from jobs.devices import GPUS, Device, find_device
from jobs.modelled import (
    NOTHING,
    ModelledRound,
    Saving,
    Shape,
    best_length,
    expected_tokens,
    model_pass,
    model_round,
    weight_bytes,
)
from jobs.sizing import known_model, step_seconds

# Two layers of 8 hidden, 4 query heads on 2 KV heads of 2, 10 wide, 5 words.
# A layer's attention: 8*(4+4)*2 + 4*2*8 = 192; its MLP: 3*8*10 = 240; the head: 40.
TINY = Shape(layers=2, hidden=8, heads=4, kv_heads=2, head_dim=2, wide=10, vocab=5)
SLOW = Device("slow", bandwidth=100.0, flops=1e9)
WEAK = Device("weak", bandwidth=1e9, flops=1000.0)
LLAMA = Shape.of(known_model("Llama-2-13b"))
H200 = GPUS["H200"]


def llama_round(
    saving: Saving, batch: int, context: int, acceptance: float = 0.9, length: int = 4
) -> ModelledRound:
    return model_round(
        LLAMA,
        H200,
        batch=batch,
        context=context,
        saving=saving,
        draft_tokens=length,
        tokens_per_pass=expected_tokens(acceptance, length),
    )


def test_weights_of_a_shape_by_hand() -> None:
    assert (TINY.attention, TINY.mlp, TINY.head) == (192, 240, 40)
    # Llama-2-13B: 4 * 5120^2, 3 * 5120 * 13824; with the head 25.70 GB in bf16.
    assert (LLAMA.attention, LLAMA.mlp) == (104_857_600, 212_336_640)
    plain = model_pass(LLAMA, H200, batch=1, context=0)
    assert plain.weight_bytes == 2 * (40 * (104_857_600 + 212_336_640) + 32000 * 5120)


def test_a_plain_pass_by_hand() -> None:
    found = model_pass(TINY, SLOW, batch=3, context=10)
    # 2 bytes * (2 * 432 + 40); 2 bytes * 3 sequences * 2 * 2 layers * 2 heads * 2 * (10 + 1).
    assert found.weight_bytes == 1808
    assert found.kv_bytes == 1056
    # 2 * 3 * 904, and 4 * 3 * 2 layers * 4 heads * 2 * (10 + 1).
    assert found.operations == 5424 + 2112
    assert found.seconds == pytest.approx((1808 + 1056) / 100)
    busy = model_pass(TINY, WEAK, batch=3, context=10)
    assert busy.seconds == pytest.approx((5424 + 2112) / 1000)


def test_a_pass_over_several_tokens_reads_the_cache_once_by_hand() -> None:
    found = model_pass(TINY, SLOW, batch=3, context=10, tokens=4)
    assert found.weight_bytes == 1808
    assert found.kv_bytes == 2 * 3 * 2 * 2 * 2 * 2 * (10 + 4)
    # The j-th of 4 tokens attends to 10 + j keys: 2.5 of its own on average.
    assert found.operations == 2 * 3 * 4 * 904 + 4 * 3 * 4 * 2 * 4 * 2 * (10 + 2.5)


def test_what_a_draft_pass_leaves_out_by_hand() -> None:
    dropped = model_pass(TINY, SLOW, batch=3, context=10, saving=Saving(dropped_attention=1))
    assert dropped.weight_bytes == 1808 - 2 * 192
    assert dropped.kv_bytes == 1056 / 2
    mlp = model_pass(TINY, SLOW, batch=3, context=10, saving=Saving(dropped_mlps=1))
    assert mlp.weight_bytes == 1808 - 2 * 240
    assert mlp.kv_bytes == 1056
    # Of 4 units one reads 4 of 10 keys; all write.
    windowed = model_pass(TINY, SLOW, batch=3, context=10, saving=Saving(windowed=1, window=4))
    assert windowed.weight_bytes == 1808
    assert windowed.kv_bytes == 2 * 3 * 2 * 2 * (3 * 10 + 4 + 4 * 1)
    int8 = model_pass(TINY, SLOW, batch=3, context=10, saving=Saving(weights="int8"))
    assert int8.weight_bytes == 904
    assert int8.kv_bytes == 1056


def test_weights_that_one_sequence_needs_are_read_for_all() -> None:
    plans = [DraftPlan((3, 4, 5), 4), DraftPlan((4, 5), 4), DraftPlan((5, 6), 4)]
    saving = Saving.of(plans)
    assert saving.shared_attention == 1
    assert saving.dropped_attention == pytest.approx(7 / 3)
    together = model_pass(LLAMA, H200, batch=3, context=100, saving=saving)
    plain = model_pass(LLAMA, H200, batch=3, context=100)
    assert plain.weight_bytes - together.weight_bytes == 2 * LLAMA.attention
    assert 1 - together.kv_bytes / plain.kv_bytes == pytest.approx(7 / 3 / 40)


def test_limits_and_mlps_of_plans_are_counted() -> None:
    plans = [
        DraftPlan((1,), 4, (2, 3), ((0,), (), (1,), ())),
        DraftPlan((1,), 4, (3,), ((), (), (0, 1), ())),
    ]
    saving = Saving.of(plans, window=32, weights="int4")
    assert (saving.windowed, saving.dropped_mlps) == (2, 1)
    assert (saving.window, saving.weights) == (32, "int4")


def test_a_limited_unit_reads_what_the_engines_default_does() -> None:
    from admg.draft_rules import WindowRule
    from admg.windows import SINKS

    assert Saving().window == SINKS + WindowRule(share=0.5).window


def test_it_agrees_with_the_share_of_the_cache_that_plans_report() -> None:
    plan = DraftPlan((1, 2), 4, (), ((0, 1), (), (), (5,), *[()] * 36))
    saving = Saving.of([plan], window=64)
    context = 100_000  # what is written does not count at such a length
    plain = model_pass(LLAMA, H200, batch=1, context=context)
    draft = model_pass(LLAMA, H200, batch=1, context=context, saving=saving)
    saved = 1 - draft.kv_bytes / plain.kv_bytes
    assert saved == pytest.approx(plan.kv_saved(40, 40, context, 64), abs=1e-5)


def test_a_plain_step_costs_what_the_sizing_says() -> None:
    model = known_model("Llama-2-13b")
    for batch, context in ((1, 1024), (32, 2048)):
        seconds, _ = step_seconds(model, GPUS["H200"], batch, context)
        found = model_pass(LLAMA, H200, batch=batch, context=context).seconds
        assert found == pytest.approx(seconds, rel=2e-3)


@pytest.mark.parametrize(
    ("dropped", "mlps", "batch", "context", "ratio"),
    [
        # Worked out independently beforehand: draft over target for Llama-2-13B on one H200.
        (20, 0, 1, 1024, 0.83),
        (20, 0, 32, 1024, 0.66),
        (24, 0, 64, 2048, 0.48),
        (30, 0, 64, 1024, 0.41),
        (24, 10, 1, 1024, 0.63),
        (24, 10, 64, 1024, 0.48),
    ],
)
def test_known_cost_ratios_of_a_large_model(
    dropped: int, mlps: int, batch: int, context: int, ratio: float
) -> None:
    found = llama_round(Saving(dropped, mlps), batch, context).cost_ratio
    assert found == pytest.approx(ratio, abs=0.012)


def test_known_speedups_of_a_large_model() -> None:
    def best(saving: Saving, batch: int, acceptance: float) -> float:
        sizes = {"batch": batch, "context": 1024}
        return best_length(LLAMA, H200, saving=saving, acceptance=acceptance, **sizes)[1]

    assert best(Saving(20), 1, 0.9) == pytest.approx(1.04, abs=0.02)
    assert best(Saving(24), 32, 0.95) == pytest.approx(1.33, abs=0.03)
    assert best(Saving(24, 10), 32, 0.9) == pytest.approx(1.35, abs=0.03)


def test_nothing_drafted_is_plain_decoding() -> None:
    for saving in (NOTHING, Saving(24, 10)):
        found = model_round(
            LLAMA, H200, batch=8, context=500, saving=saving, draft_tokens=0, tokens_per_pass=1
        )
        assert found.speedup == 1.0


def test_a_draft_that_saves_nothing_never_pays() -> None:
    assert llama_round(NOTHING, 1, 1024, acceptance=1.0).speedup < 1.0
    # But for lookup, whose drafts cost no pass.
    free = model_round(
        LLAMA,
        H200,
        batch=1,
        context=1024,
        saving=NOTHING,
        draft_tokens=4,
        tokens_per_pass=3,
        draft_passes=0,
    )
    assert free.speedup == pytest.approx(3, rel=0.01)


def test_the_best_length_is_none_where_drafts_do_not_pay() -> None:
    sizes = {"batch": 1, "context": 1024, "saving": Saving(4)}
    assert best_length(LLAMA, H200, acceptance=0.5, **sizes) == (0, 1.0)  # type: ignore[arg-type]
    length, speedup = best_length(LLAMA, H200, acceptance=0.99, **sizes)  # type: ignore[arg-type]
    assert (length, speedup) == (0, 1.0) or speedup > 1
    far, _ = best_length(LLAMA, H200, batch=64, context=2048, saving=Saving(30), acceptance=0.95)
    near, _ = best_length(LLAMA, H200, batch=64, context=2048, saving=Saving(30), acceptance=0.7)
    assert far > near > 0


@settings(max_examples=60, deadline=None)
@given(
    dropped=st.integers(0, 38),
    mlps=st.integers(0, 39),
    units=st.integers(0, 40),
    batch=st.integers(1, 256),
    context=st.integers(1, 20_000),
    weights=st.sampled_from(["full", "int8", "int4"]),
    device=st.sampled_from([H200, SLOW, WEAK]),
)
def test_leaving_more_out_never_costs_more(
    dropped: int,
    mlps: int,
    units: int,
    batch: int,
    context: int,
    weights: str,
    device: Device,
) -> None:
    steps = [
        NOTHING,
        Saving(dropped),
        Saving(dropped, mlps),
        Saving(dropped, mlps, units),
        Saving(dropped, mlps, units, weights=weights),
        Saving(dropped + 1, mlps, units, weights=weights),
    ]
    passes = [model_pass(LLAMA, device, batch=batch, context=context, saving=s) for s in steps]
    for more, less in pairwise(passes):
        assert less.seconds <= more.seconds
        assert less.weight_bytes <= more.weight_bytes
        assert less.kv_bytes <= more.kv_bytes
        assert less.kv_bytes >= 0


@settings(max_examples=40, deadline=None)
@given(
    context=st.integers(100, 10_000),
    acceptance=st.floats(0.05, 1.0),
    length=st.integers(1, 12),
)
def test_where_bandwidth_binds_more_context_favours_dropped_attention(
    context: int, acceptance: float, length: int
) -> None:
    near = llama_round(Saving(24), 8, context, acceptance, length)
    far = llama_round(Saving(24), 8, 2 * context, acceptance, length)
    # MLPs save nothing that grows with the context: their share of a pass falls.
    mlps = llama_round(Saving(0, 24), 8, context, acceptance, length)
    mlps_far = llama_round(Saving(0, 24), 8, 2 * context, acceptance, length)
    assert far.speedup > near.speedup
    assert mlps_far.speedup < mlps.speedup
    assert near.saved_kv_bytes < far.saved_kv_bytes
    assert near.saved_weight_bytes == far.saved_weight_bytes


@given(st.floats(0, 1), st.integers(0, 12))
def test_expected_tokens_is_the_closed_form(acceptance: float, length: int) -> None:
    found = expected_tokens(acceptance, length)
    assert 1 <= found <= length + 1
    if acceptance < 0.999:
        closed = (1 - acceptance ** (length + 1)) / (1 - acceptance)
        assert found == pytest.approx(closed)


def test_bytes_of_a_weight_are_those_of_the_engine() -> None:
    import torch

    from admg.low_bit import Int4Linear, Int8Linear

    weight = torch.randn(64, 96, dtype=torch.bfloat16)
    assert Int4Linear(weight, None).nbytes == weight_bytes("int4") * weight.numel()
    # int8 has a scale for each output, which large matrices make nothing of.
    assert Int8Linear(weight, None).nbytes == weight_bytes("int8") * weight.numel() + 2 * 64
    with pytest.raises(ValueError, match="draft_weights is 'int2'"):
        weight_bytes("int2")


@pytest.mark.parametrize(
    ("draft_tokens", "tokens", "said"),
    [(-1, 1, "draft_tokens is -1"), (2, 3.5, "tokens_per_pass is 3.5"), (2, 0.5, "between 1 and")],
)
def test_impossible_rounds_are_refused(draft_tokens: float, tokens: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model_round(
            TINY,
            SLOW,
            batch=1,
            context=1,
            saving=NOTHING,
            draft_tokens=draft_tokens,
            tokens_per_pass=tokens,
        )


@pytest.mark.parametrize("saving", [Saving(3), Saving(0, 3), Saving(1, 0, 3)])
def test_more_than_the_model_has_cannot_be_left_out(saving: Saving) -> None:
    with pytest.raises(ValueError, match="at most 2 layers with 2 KV heads"):
        model_pass(TINY, SLOW, batch=1, context=1, saving=saving)


def test_devices_by_name() -> None:
    assert find_device("H200").bandwidth == 4.8e12
    with pytest.raises(ValueError, match="device is 'A100': it must be here or one of L40S"):
        find_device("A100")


def test_this_machine_is_what_the_probe_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"device": "cpu", "peak_gflops": 50.0, "peak_gbs": 20.0}
    monkeypatch.setattr("jobs.bench.probe.peaks", lambda dtype: found | {"dtype": dtype})
    assert find_device("here", "float32") == Device("here (cpu)", 20e9, 50e9)


def test_the_model_of_costs_needs_no_torch() -> None:
    code = "import sys, jobs.modelled; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
