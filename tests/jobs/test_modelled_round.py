"""Rounds of drafting by the roofline: known costs and gains, and what must hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.devices import GPUS
from jobs.modelled import NOTHING, ModelledRound, Saving, Shape, model_round
from jobs.sizing import known_model

LLAMA = Shape.of(known_model("Llama-2-13b"))
H200 = GPUS["H200"]


def llama_round(
    saving: Saving, batch: int, context: int, acceptance: float = 0.9, length: int = 4
) -> ModelledRound:
    """Each draft token is accepted with the same chance (arXiv 2211.17192, equation 1)."""
    return model_round(
        LLAMA,
        H200,
        batch=batch,
        context=context,
        saving=saving,
        draft_tokens=length,
        tokens_per_pass=sum(acceptance**i for i in range(length + 1)),
    )


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
        lengths = range(1, 13)
        return max(llama_round(saving, batch, 1024, acceptance, n).speedup for n in lengths)

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


@pytest.mark.parametrize(
    ("draft_tokens", "tokens", "said"),
    [(-1, 1, "draft_tokens is -1"), (2, 3.5, "tokens_per_pass is 3.5"), (2, 0.5, "between 1 and")],
)
def test_impossible_rounds_are_refused(draft_tokens: float, tokens: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model_round(
            LLAMA,
            H200,
            batch=1,
            context=1,
            saving=NOTHING,
            draft_tokens=draft_tokens,
            tokens_per_pass=tokens,
        )
