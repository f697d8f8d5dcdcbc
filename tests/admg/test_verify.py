"""Verification by exact enumeration: every draft, every outcome, no sampling."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from admg.verify import accept_shared, accept_token, residual
from tests.admg.enumeration import FAMILIES, ByToken, chain, enumerate_round, markov, pair


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vocab", [2, 5, 8])
def test_one_draft_token_leaves_the_target_law(family: str, vocab: int) -> None:
    for seed in range(6):
        p, q = markov(family, vocab, seed)
        error = (enumerate_round(ByToken(), p, q, 1).law - chain(p, 2)).abs().sum()
        assert error < 1e-12


@pytest.mark.parametrize(
    ("family", "vocab", "drafted"),
    [(family, 4, 2) for family in FAMILIES] + [("mixed", 8, 2), ("mixed", 3, 3), ("random", 4, 3)],
)
def test_several_draft_tokens_leave_the_joint_law(family: str, vocab: int, drafted: int) -> None:
    p, q = markov(family, vocab, seed=0)
    law = enumerate_round(ByToken(), p, q, drafted).law
    assert (law - chain(p, drafted + 1)).abs().sum() < 1e-12


def test_the_enumeration_sees_a_wrong_draft_law() -> None:
    """Tokens drawn from q but verified against another law: the error is far above 1e-12."""
    p, q = markov("random", 5, seed=1)
    other = (q.sqrt() / q.sqrt().sum(dim=1, keepdim=True)).contiguous()
    drafts = torch.arange(5)[:, None]
    accepted = torch.zeros(5, dtype=torch.float64)
    for u in (torch.arange(1000) + 0.5) / 1000:
        rows = p[-1].expand(5, 1, 5), other[-1].expand(5, 1, 5), u.double().expand(5, 1)
        accepted += accept_token(drafts, torch.ones(5, dtype=torch.int64), *rows) / 1000
    law = q[-1] * accepted
    law = law + (1 - law.sum()) * residual(p[-1:], other[-1:])[0]
    assert (law - p[-1]).abs().sum() > 1e-2


def test_the_acceptance_rate_is_the_overlap_of_the_laws() -> None:
    """alpha = sum min(p, q): what exactness alone would not notice is a verifier that is lazy."""
    p, q = (torch.tensor(x) for x in pair("random", 8, np.random.default_rng(3)))
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    rate = 0.0
    for x in range(8):
        drafts = torch.full((4000, 1), x)
        laws = p.expand(4000, 1, 8), q.expand(4000, 1, 8)
        kept = accept_token(drafts, torch.ones(4000, dtype=torch.int64), *laws, u[:, None])
        rate += float(q[x] * kept.double().mean())
    assert rate == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-3)


def test_acceptance_is_strict() -> None:
    p = torch.tensor([[[0.25, 0.75, 0.0]]], dtype=torch.float64)
    q = torch.tensor([[[0.5, 0.25, 0.25]]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.int64)

    def kept(token: int, u: float) -> int:
        uniform = torch.tensor([[u]], dtype=torch.float64)
        return int(accept_token(torch.tensor([[token]]), one, p, q, uniform))

    assert kept(0, 0.5 - 2**-53) == 1
    assert kept(0, 0.5) == 0, "u q = p is a rejection"
    assert kept(1, 1 - 2**-53) == 1, "p above q is always accepted"
    assert kept(2, 0.0) == 0, "a token of probability 0 is never accepted, not even by u = 0"


@pytest.mark.parametrize("family", FAMILIES)
def test_single_precision_laws_are_exact_up_to_rounding(family: str) -> None:
    p, q = markov(family, 4, seed=2)
    out = enumerate_round(ByToken(), p.float(), q.float(), 2).law
    assert (out - chain(p, 3)).abs().sum() < 1e-5


def test_residual_of_equal_laws_and_of_the_bonus_token_is_the_target_law() -> None:
    p, _ = markov("zeros", 7, seed=4)
    assert torch.equal(residual(p, p), p)
    assert torch.allclose(residual(p, torch.zeros_like(p)), p, rtol=1e-14, atol=0)


def test_residual_of_a_point_mass_is_the_rest() -> None:
    p = torch.tensor([[0.5, 0.125, 0.375]], dtype=torch.float64)
    q = torch.eye(3, dtype=torch.float64)[:1]
    assert torch.allclose(residual(p, q), torch.tensor([[0.0, 0.25, 0.75]], dtype=torch.float64))


def prefix(drafts: list[int], targets: list[int], length: int) -> int:
    """The longest equal prefix, spelled out."""
    n = 0
    while n < length and drafts[n] == targets[n]:
        n += 1
    return n


@pytest.mark.parametrize("drafted", [1, 2, 3])
@pytest.mark.parametrize("extra", [0, 1], ids=["K targets", "K+1 targets"])
def test_shared_noise_accepts_the_longest_equal_prefix(drafted: int, extra: int) -> None:
    """Every draft against every target of 3 tokens, with every length in one ragged batch."""
    every = itertools.product(range(3), repeat=2 * drafted + extra)
    cases = [(c[:drafted], c[drafted:], n) for c in every for n in range(drafted + 1)]
    drafts, targets, lengths = (torch.tensor([case[i] for case in cases]) for i in range(3))
    accepted = accept_shared(drafts, lengths, targets)
    assert accepted.dtype == torch.int64
    assert accepted.tolist() == [prefix(list(d), list(t), n) for d, t, n in cases]


@pytest.mark.parametrize("padding", [0, 7, -1])
def test_padding_never_counts_in_shared_noise(padding: int) -> None:
    """Padding equal to the target's tokens is still padding."""
    drafts = torch.tensor([[7, padding, padding], [padding] * 3, [1, 2, 3], [1, 2, padding]])
    targets = torch.tensor(
        [[7, padding, padding, 4], [padding] * 4, [1, 2, 3, 4], [1, 2, padding, 4]]
    )
    lengths = torch.tensor([1, 0, 3, 2])
    assert accept_shared(drafts, lengths, targets).tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("drafted", [1, 2, 3])
def test_rejection_accepts_the_longest_kept_prefix_of_ragged_drafts(drafted: int) -> None:
    """All verdict patterns with every length; padding would always be accepted if it counted."""
    patterns = list(itertools.product([True, False], repeat=drafted))
    cases = [(keep, n) for keep in patterns for n in range(drafted + 1)]
    lengths = torch.tensor([n for _, n in cases])
    p = torch.zeros(len(cases), drafted, 2, dtype=torch.float64)
    for b, (keep, n) in enumerate(cases):
        for j in range(drafted):
            p[b, j, 0] = 1.0 if keep[j] or j >= n else 0.0
    p[..., 1] = 1 - p[..., 0]
    drafts = torch.zeros(len(cases), drafted, dtype=torch.int64)
    u = torch.full((len(cases), drafted), 0.5, dtype=torch.float64)
    accepted = accept_token(drafts, lengths, p, torch.full_like(p, 0.5), u)
    assert accepted.tolist() == [prefix([1] * drafted, list(keep), n) for keep, n in cases]


def test_empty_drafts_are_plain_decoding() -> None:
    none = torch.zeros(3, 0, dtype=torch.int64)
    lengths = torch.zeros(3, dtype=torch.int64)
    laws = torch.zeros(3, 0, 4, dtype=torch.float64)
    uniform = torch.zeros(3, 0, dtype=torch.float64)
    assert accept_shared(none, lengths, torch.ones(3, 1, dtype=torch.int64)).tolist() == [0, 0, 0]
    assert accept_token(none, lengths, laws, laws, uniform).tolist() == [0, 0, 0]
