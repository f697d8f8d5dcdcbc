"""A pass by the roofline, against numbers worked out by hand and against what must hold."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admg.plan import DraftPlan
from jobs.devices import GPUS, Device, find_device
from jobs.modelled import NOTHING, Saving, Shape, model_pass, weight_bytes
from jobs.sizing import known_model, step_seconds

# Two layers of 8 hidden, 4 query heads on 2 KV heads of 2, 10 wide, 5 words.
# A layer's attention: 8*(4+4)*2 + 4*2*8 = 192; its MLP: 3*8*10 = 240; the head: 40.
TINY = Shape(layers=2, hidden=8, heads=4, kv_heads=2, head_dim=2, wide=10, vocab=5)
SLOW = Device("slow", bandwidth=100.0, flops=1e9)
WEAK = Device("weak", bandwidth=1e9, flops=1000.0)
LLAMA = Shape.of(known_model("Llama-2-13b"))
H200 = GPUS["H200"]


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


def test_bytes_of_a_weight_are_those_of_the_engine() -> None:
    import torch

    from admg.low_bit import Int4Linear, Int8Linear

    weight = torch.randn(64, 96, dtype=torch.bfloat16)
    assert Int4Linear(weight, None).nbytes == weight_bytes("int4") * weight.numel()
    # int8 has a scale for each output, which large matrices make nothing of.
    assert Int8Linear(weight, None).nbytes == weight_bytes("int8") * weight.numel() + 2 * 64
    with pytest.raises(ValueError, match="draft_weights is 'int2'"):
        weight_bytes("int2")


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
