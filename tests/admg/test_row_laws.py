"""Draws of whole batches by tensors: what stands beside a row, and ties where laws are cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from admg.config import SamplingParams
from admg.noise import signed, token_hash
from admg.row_laws import NO_TOKEN, LawKind, RowLaws
from admg.sampling import LawRow, Sampler, likeliest

VOCAB = 64


def laws_of(params: list[SamplingParams]) -> RowLaws:
    """One row each, at position 0; the row's number is its base."""
    return RowLaws(
        base=torch.tensor([signed(i) for i in range(len(params))]),
        position=torch.zeros(len(params), dtype=torch.int64),
        temperature=torch.tensor([p.temperature for p in params]),
        top_k=torch.tensor([p.top_k or VOCAB for p in params]),
        top_p=torch.tensor([p.top_p for p in params]),
        min_p=torch.tensor([p.min_p for p in params]),
        stops=torch.full((len(params), 1), NO_TOKEN),
        min_tokens=torch.zeros(len(params), dtype=torch.int64),
    )


def draw(logits: Tensor, params: list[SamplingParams], kind: LawKind) -> list[int]:
    return laws_of(params).draw(logits, kind, token_hash(torch.arange(VOCAB))).tolist()


def test_a_row_that_cuts_nothing_is_drawn_the_same_beside_those_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the same operations: sorted sums would round otherwise."""
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1))
    params = [
        SamplingParams(temperature=1.0, min_p=0.02),
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=0.7, top_k=VOCAB),
        SamplingParams(temperature=1.0, top_p=0.5),
    ]
    assert LawKind.of(params, False, VOCAB) == LawKind("mixed")
    assert LawKind.of(params[1::2], False, VOCAB) == LawKind("cut")
    assert LawKind.of(params[::2], True, VOCAB) == LawKind("whole", bans=True)
    whole = draw(logits, params, LawKind("whole"))
    monkeypatch.setattr(RowLaws, "_draw_cut", lambda _, scaled, *__: torch.full((len(scaled),), -7))
    assert draw(logits, params, LawKind("mixed")) == [whole[0], -7, whole[2], -7]


@pytest.mark.parametrize(
    "law",
    [
        SamplingParams(temperature=1.0, top_k=10),
        SamplingParams(temperature=1.0, top_p=0.4),
        SamplingParams(temperature=0.6, top_k=33, top_p=0.5),
    ],
)
def test_ties_where_laws_are_cut_are_those_of_the_host(law: SamplingParams) -> None:
    """As half-precision logits have them all the time."""
    count = 300
    logits = (
        torch.randint(0, 3, (count, VOCAB), generator=torch.Generator().manual_seed(2)) / 2 - 0.5
    )
    params = [law] * count
    drawn = draw(logits, params, LawKind.of(params, False, VOCAB))
    rows = [LawRow(law, i, 0) for i in range(count)]
    assert Sampler(VOCAB).draw(logits, rows).tolist() == drawn
    assert len(set(drawn)) > 20


def test_the_likeliest_are_in_the_order_of_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, VOCAB, generator=generator).mul(2).round()  # with zeros of both signs
    logits[:, 5], logits[3, 9], logits[4, 9] = -torch.inf, torch.inf, -0.0
    values, tokens = logits.sort(dim=-1, descending=True, stable=True)
    for size in (1, 10, VOCAB):
        found = likeliest(logits, size)
        assert torch.equal(found[0], values[:, :size]) and torch.equal(found[1], tokens[:, :size])
