"""Laws against a plain fp64 reference and transformers' processors; draws against the laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from admg import noise
from admg.config import SamplingParams
from admg.sampling import FIRST_CANDIDATES, LawRow, Sampler, adjust, confidence, likeliest
from tests.admg.chi_square import LEVEL, chi_square
from tests.admg.plain_laws import reference, row, spread_logits

# Cuts closer to a token's cumulative mass than this are decided by rounding.
MARGIN = 1e-5

deterministic = settings(derandomize=True, deadline=None, max_examples=300, database=None)


def laws(logits: Tensor, rows: Sequence[LawRow]) -> Tensor:
    return Sampler(logits.shape[1]).laws(logits, rows)


def close(found: Tensor, expected: np.ndarray) -> bool:
    """Equal support, and equal up to fp32 rounding of logits that temperature may blow up."""
    found = found.double().numpy()
    tiny = expected > 1e-30  # below that fp32 may well say 0
    same_support = not found[expected == 0].any() and bool((found[tiny] > 0).all())
    return same_support and np.allclose(found, expected, rtol=1e-4, atol=1e-30)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], LawRow]:
    vocab = draw(st.integers(2, 40))
    tokens = st.integers(0, vocab - 1)
    fields = {
        "temperature": draw(st.sampled_from([0.0, 0.1, 0.7, 1.0, 1.3, 5.0])),
        "top_k": draw(st.sampled_from([0, 1, 2, 7, 39, 40, 1000])),
        "top_p": draw(st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.05])),
        "min_p": draw(st.sampled_from([0.0, 0.001, 0.1, 0.7])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.2, 0.8, 3.0])),
    }
    banned = draw(st.lists(tokens, max_size=vocab - 1, unique=True))
    seen = draw(st.lists(tokens, max_size=6))
    logits = spread_logits(vocab, draw(st.integers(0, 2**32 - 1)))
    return logits, row(banned=tuple(banned), seen=seen, **fields)


@deterministic
@given(cases())
def test_laws_follow_the_plain_reference(drawn: tuple[list[float], LawRow]) -> None:
    logits, law_row = drawn
    expected, near = reference(logits, law_row)
    assume(near > MARGIN)
    assert close(laws(torch.tensor([logits]), [law_row])[0], expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 0.95},
        {"top_p": 0.3},
        {"top_p": 0.95, "temperature": 3.0},
        {"top_p": 0.95, "min_p": 0.3},
        {"top_k": 2000, "top_p": 0.9},
        {"top_k": FIRST_CANDIDATES, "top_p": 0.9},
        {"top_k": 50},
        {"min_p": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [0.001, 0.5, 8.0], ids=["flat", "broad", "peaked"])
def test_laws_of_large_vocabularies(fields: dict[str, Any], width: float) -> None:
    """Flat laws need far more than the first candidates of top-p, peaked ones a handful."""
    generator = np.random.default_rng(3)
    for _ in range(20):
        logits = (width * generator.standard_normal(5000)).astype(np.float32).tolist()
        expected, near = reference(logits, row(**fields))
        if near > 3e-7:
            break
    found = laws(torch.tensor([logits]), [row(**fields)])[0].double().numpy()
    # Tokens whose cumulative mass lies within rounding of the cut may fall on either side.
    assert np.abs(found - expected).sum() < 1e-3
    assert abs(int((found > 0).sum()) - int((expected > 0).sum())) <= 2


@pytest.mark.parametrize("vocab", [64, 100, 3000])
def test_top_p_of_one_is_off(vocab: int) -> None:
    """However peaked the law is, none of the top-k candidates loses its probability."""
    logits = -0.4 * torch.arange(float(vocab))[None]
    found = laws(logits, [row(top_p=1.0, top_k=64)])
    assert int((found > 0).sum()) == 64


def test_top_p_keeps_the_token_that_reaches_it_and_never_nothing() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert laws(logits, [row(top_p=0.01)])[0].tolist() == [1, 0, 0, 0]
    assert torch.allclose(
        laws(logits, [row(top_p=0.6)])[0], torch.tensor([2 / 3, 1 / 3, 0, 0]), atol=1e-6
    )


PROCESSORS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.1},
    "penalty": {"repetition_penalty": 1.7, "seen": (0, 3, 3, 8, 11)},
    "banned": {"banned": (1, 5, 19)},
    "all": {
        "temperature": 1.4,
        "top_k": 12,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.3,
        "seen": (2, 4, 7),
        "banned": (0, 9),
    },
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_laws_are_those_of_transformers(name: str) -> None:
    fields = PROCESSORS[name]
    law_row = row(**fields)
    s, processors = law_row.sampling, transformers.LogitsProcessorList()
    if s.repetition_penalty != 1:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    if law_row.banned:
        processors.append(transformers.SuppressTokensLogitsProcessor(list(law_row.banned)))
    processors.append(transformers.TemperatureLogitsWarper(s.temperature))
    if s.top_k:
        processors.append(transformers.TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(s.top_p))
    if s.min_p:
        processors.append(transformers.MinPLogitsWarper(s.min_p))
    ids = torch.tensor([list(fields.get("seen", (0,)))])
    for seed in range(25):
        logits = torch.tensor([spread_logits(20, seed)])
        expected = processors(ids, logits.clone()).softmax(dim=-1)[0].double().numpy()
        assert close(laws(logits, [law_row])[0], expected)


# Rows and their neighbours

NEIGHBOURS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 0.2},
    "top-k": {"top_k": 5},
    "as many as the first candidates": {"top_k": FIRST_CANDIDATES},
    "the same, and top-p": {"top_k": FIRST_CANDIDATES, "top_p": 0.7},
    "everything is a candidate": {"top_k": 10**6},
    "top-p": {"top_p": 0.9},
    "wide top-p": {"top_p": 0.9999},
    "min-p": {"min_p": 0.02},
    "penalised": {"repetition_penalty": 1.5, "seen": (0, 1, 2)},
    "banned": {"banned": (3, 4), "top_p": 0.5},
}


@pytest.mark.parametrize("vocab", [50, FIRST_CANDIDATES, 3000])
@pytest.mark.parametrize("width", [0.1, 6.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_row_does_not_know_its_neighbours(name: str, width: float, vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = width * torch.randn(len(NEIGHBOURS), vocab, generator=generator)
    rows = [row(position=i, key=n, **fields) for i, (n, fields) in enumerate(NEIGHBOURS.items())]
    sampler, i = Sampler(vocab), list(NEIGHBOURS).index(name)
    alone = sampler.laws(logits[i : i + 1], rows[i : i + 1])
    drawn = sampler.draw(logits[i : i + 1], rows[i : i + 1])
    for j in range(len(rows)):
        for order in ([i, j], [j, i]):
            beside = sampler.laws(logits[order], [rows[k] for k in order])
            off = (beside[order.index(i)] - alone[0]).abs().sum()
            assert torch.equal(beside[order.index(i)], alone[0]), f"off by {off}: {rows[j]}"
    everyone = torch.randperm(len(rows), generator=generator).tolist()
    together = sampler.draw(logits[everyone], [rows[k] for k in everyone])
    assert together[everyone.index(i)] == drawn[0]


# Draws


def test_greedy_is_the_argmax_after_bans_and_penalties() -> None:
    logits = torch.tensor([[1.0, 5.0, 4.0, 3.0], [1.0, 5.0, 4.0, 3.0], [-1.0, -2.0, -3.0, -4.0]])
    greedy = {"temperature": 0.0, "top_k": 1, "top_p": 0.1}
    rows = [
        row(**greedy),
        row(**greedy, banned=(1,), repetition_penalty=2.0, seen=(2,)),
        row(**greedy, repetition_penalty=2.5, seen=(0,)),
    ]
    for purpose in (noise.TARGET, noise.DRAFT):
        assert Sampler(4).draw(logits, rows, purpose).tolist() == [1, 3, 1]
    assert laws(logits, rows).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]


def test_adjust_leaves_its_input_alone() -> None:
    logits = torch.tensor([[1.0, -1.0, 2.0]])
    assert adjust(logits, [row()]) is logits
    found = adjust(logits, [row(banned=(2,), repetition_penalty=2.0, seen=(0, 0, 1))])
    assert found.tolist() == [[0.5, -2.0, -math.inf]]
    assert logits.tolist() == [[1.0, -1.0, 2.0]]


def test_seen_is_not_asked_without_a_penalty() -> None:
    def refuse() -> Sequence[int]:
        raise AssertionError

    laws(torch.zeros(1, 4), [LawRow(SamplingParams(temperature=1.0), 0, 0, seen=refuse)])


DRAWN = {
    "plain": {},
    "warm top-k": {"temperature": 1.5, "top_k": 6},
    "top-p": {"top_p": 0.8},
    "all": PROCESSORS["all"],
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_follow_the_laws(name: str) -> None:
    logits = torch.tensor([spread_logits(20, seed=4)]).expand(20_000, 20)
    rows = [row(position=t, **DRAWN[name]) for t in range(20_000)]
    drawn = Sampler(20).draw(logits, rows).numpy()
    law = laws(logits[:1], rows[:1])[0].double().numpy()
    assert chi_square(np.bincount(drawn, minlength=20), law) > LEVEL


@pytest.mark.parametrize("vocab", [20, 3000])
@pytest.mark.parametrize("purpose", [noise.TARGET, noise.DRAFT])
def test_draws_are_the_same_from_logits_and_from_laws(vocab: int, purpose: int) -> None:
    """Noise goes with the token id, whatever candidates a law is kept as."""
    logits = 2 * torch.randn(300, vocab, generator=torch.Generator().manual_seed(vocab))
    fields = list(NEIGHBOURS.values())
    rows = [row(position=t, salt=t % 3, **fields[t % len(fields)]) for t in range(300)]
    sampler = Sampler(vocab)
    drawn = sampler.draw(logits, rows, purpose)
    assert torch.equal(drawn, sampler.draw_from(sampler.laws(logits, rows), rows, purpose))


def test_draws_are_races_with_the_rows_own_noise() -> None:
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    rows = [row(position=t, seed=5, key=f"k{t}", salt=2) for t in range(40)]
    keys = [
        noise.position_key(noise.stream(5, f"k{t}"), t, noise.RESIDUAL, salt=2) for t in range(40)
    ]
    numbers = noise.exponential(torch.tensor(keys), noise.token_hash(torch.arange(30)))
    expected = (logits.double() - numbers.log()).argmax(dim=1)  # the Gumbel-max form
    assert torch.equal(Sampler(30).draw(logits, rows, noise.RESIDUAL), expected)


def test_confidence_is_the_untempered_probability() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).log() + 3
    assert torch.allclose(confidence(logits, torch.tensor([1, 2])), torch.tensor([0.25, 0.7]))


@pytest.mark.parametrize("step", [1e-9, 0.25, 4.0], ids=["no-ties", "ties", "ties-everywhere"])
@pytest.mark.parametrize("size", [1, 50, 1024, 3000])
def test_of_equals_the_first_tokens_are_the_likeliest(size: int, step: float) -> None:
    logits = torch.randn(
        3, 3000, generator=torch.Generator().manual_seed(size), dtype=torch.float64
    )
    logits = ((logits / step).round() * step).float()
    logits[1, 100:] = -torch.inf
    logits[2, ::2] *= -0.0
    values, tokens = logits.sort(dim=-1, descending=True, stable=True)
    found = likeliest(logits, size)
    assert torch.equal(found[0], values[:, :size])
    assert torch.equal(found[1], tokens[:, :size])
