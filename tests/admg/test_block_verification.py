"""Block verification: the target's joint law exactly, and never less than token verification."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from admg.verify import accept_block, residual
from tests.admg.enumeration import (
    FAMILIES,
    ByBlock,
    ByToken,
    chain,
    enumerate_round,
    following,
    markov,
    pair,
    until_zero,
    whole,
)

CASES = [(family, 4, 2) for family in FAMILIES] + [
    *[(family, 3, 3) for family in FAMILIES],
    *[("mixed", 8, 2), ("mixed", 4, 3), ("random", 6, 3)],
    *[(family, 3, 5) for family in ("random", "mixed", "near", "zeros")],
    *[(family, 2, 5) for family in FAMILIES],
]


def drawn(q: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Drafts [count, K] of these laws [K, V], and uniform numbers for them."""
    generator = torch.Generator().manual_seed(seed)
    drafts = torch.stack([law.multinomial(count, True, generator=generator) for law in q], dim=1)
    return drafts, torch.rand(drafts.shape, generator=generator, dtype=torch.float64)


def laws(family: str, vocab: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Target laws [K + 1, V] and draft laws [K, V] without context."""
    generator = np.random.default_rng([seed, vocab])
    pairs = [pair(family, vocab, generator) for _ in range(length + 1)]
    p, q = (torch.tensor(np.array(x)) for x in zip(*pairs, strict=True))
    return p, q[:-1]


@pytest.mark.parametrize("lengths", [whole, until_zero])
@pytest.mark.parametrize(("family", "vocab", "drafted"), [("random", 5, 1), *CASES])
def test_a_round_leaves_the_joint_law(
    family: str, vocab: int, drafted: int, lengths: Callable[[Tensor], Tensor]
) -> None:
    """Also where a draft's own tokens say when it ends."""
    p, q = markov(family, vocab, seed=0)
    law = enumerate_round(ByBlock(), p, q, drafted, lengths).law
    assert (law - chain(p, drafted + 1)).abs().sum() < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_single_precision_laws_are_exact_up_to_rounding(family: str) -> None:
    class Middle(ByBlock):
        edge = 0.5

    p, q = markov(family, 4, seed=2)
    law = enumerate_round(Middle(), p.float(), q.float(), 3).law
    assert (law - chain(p, 4)).abs().sum() < 1e-5


@pytest.mark.parametrize("lengths", [whole, until_zero])
@pytest.mark.parametrize(("family", "vocab", "drafted"), CASES)
def test_no_fewer_tokens_are_expected_than_of_token_verification(
    family: str, vocab: int, drafted: int, lengths: Callable[[Tensor], Tensor]
) -> None:
    for seed in range(2):
        p, q = markov(family, vocab, seed)
        token, block = (
            enumerate_round(way, p, q, drafted, lengths).accepted for way in (ByToken(), ByBlock())
        )
        assert block > token - 1e-12
        if family == "random" and lengths is whole:
            assert block > token * 1.005, "some draft has a p above q to make good for another"


def test_one_draft_token_is_token_verification() -> None:
    for family in FAMILIES:
        p, q = markov(family, 5, seed=1)
        token, block = (enumerate_round(way, p, q, 1) for way in (ByToken(), ByBlock()))
        assert block.accepted == pytest.approx(token.accepted, abs=1e-12)


def test_the_papers_example() -> None:
    """Two tokens of a coin, 1/3 under the target and 2/3 under the draft: 10/9 become 11/9."""
    p, q = (
        torch.tensor([law] * 3, dtype=torch.float64) for law in ([1 / 3, 2 / 3], [2 / 3, 1 / 3])
    )
    token, block = (enumerate_round(way, p, q, 2).accepted for way in (ByToken(), ByBlock()))
    assert (token, block) == (pytest.approx(10 / 9), pytest.approx(11 / 9))


def test_weights_and_bars_by_hand() -> None:
    """Of one draft, a b a."""
    p = torch.tensor([[0.25, 0.75], [0.25, 0.75], [0.375, 0.625], [0.5, 0.5]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
    draft, three, below = torch.tensor([[0, 1, 0]]), torch.tensor([3]), 1 - 2**-53

    def verdict(*u: float) -> tuple[int, float]:
        uniform = torch.tensor([u], dtype=torch.float64)
        accepted, weight = accept_block(draft, three, p[None], q[None], uniform)
        return int(accepted), float(weight)

    # Weights 1/2, 1 and 3/4; after a b (p - q)+ sums to 1/8, and nothing is missing.
    assert verdict(below, below, 0.75 * below) == (3, 0.75), "refusals of shorter ones are nothing"
    assert verdict(below, below, 0.75) == (2, 1.0), "strictly below"
    p[1:3] = torch.tensor([0.0, 1.0])
    assert verdict(below, below, 0.0) == (2, 1.0), "no token of probability 0, whatever u"
    # Now b is impossible after a, and (1/2 p - q)+ sums to 1/4: the bar is 1/4 / (1/4 + 1/2).
    p[1], q[1] = torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])
    assert verdict(1 / 3 - 1e-12, 0.0, 0.0) == (1, 0.5)
    assert verdict(1 / 3 + 1e-12, 0.0, 0.0) == (0, 1.0)
    # Nothing of 1/2 p is above q: a is kept together with what follows it, or not at all.
    q[1] = torch.tensor([0.5, 0.5])
    assert verdict(0.0, 0.0, 0.0) == (0, 1.0)


def test_equal_laws_are_accepted_whole_and_disjoint_ones_not_at_all() -> None:
    for vocab in (2, 5, 40):
        p, _ = laws("random", vocab, 5)
        drafts, _ = drawn(p[:-1], 200, seed=1)
        args = drafts, torch.full((200,), 5), p.expand(200, 6, vocab)
        below = torch.full((200, 5), 1 - 2**-53, dtype=torch.float64)
        accepted, weights = accept_block(*args, args[2][:, :-1], below)
        assert accepted.tolist() == [5] * 200 and weights.tolist() == [1.0] * 200
        p, q = laws("disjoint", vocab, 5)
        drafts, _ = drawn(q, 200, seed=2)
        args = drafts, torch.full((200,), 5), p.expand(200, 6, vocab)
        accepted, weights = accept_block(*args, q.expand(200, 5, vocab), torch.zeros(200, 5))
        assert accepted.tolist() == [0] * 200
        law = following(args[2], q.expand(200, 5, vocab), args[1], accepted, weights)
        assert torch.allclose(law, p[0].expand(200, vocab), rtol=1e-12, atol=0)


def test_neither_padding_nor_neighbours_count() -> None:
    """Each sequence alone, cut to its length, has the verdict that it has in a ragged batch."""
    p, q = laws("random", 6, 5, seed=3)
    drafts, u = drawn(q, 300, seed=3)
    lengths = torch.arange(300) % 6
    p, q = p.repeat(300, 1, 1), q.repeat(300, 1, 1)
    accepted, weights = accept_block(drafts, lengths, p, q, u)
    for b, n in enumerate(lengths.tolist()):
        row = slice(b, b + 1)
        alone = drafts[row, :n], lengths[row], p[row, : n + 1], q[row, :n], u[row, :n]
        one, weight = accept_block(*alone)
        assert (int(one), float(weight)) == (int(accepted[b]), float(weights[b]))
    assert {(int(a), int(n)) for a, n in zip(accepted, lengths, strict=True)} == {
        (a, n) for n in range(6) for a in range(n + 1)
    }
    # Past its draft a sequence has any laws, not a number at all, and drafts that would be kept.
    past = torch.arange(6) > lengths[:, None]
    p[past], q[past[:, 1:]], u[past[:, 1:]] = torch.nan, torch.nan, 0.0
    again = accept_block(drafts, lengths, p, q, u)
    assert torch.equal(again[0], accepted) and torch.equal(again[1], weights)


def test_laws_that_are_not_numbers_harm_no_neighbour() -> None:
    p, q = laws("random", 6, 3, seed=4)
    drafts, u = drawn(q, 40, seed=4)
    p, q, lengths = p.repeat(40, 1, 1), q.repeat(40, 1, 1), torch.full((40,), 3)
    accepted, weights = accept_block(drafts, lengths, p, q, u)
    for at in range(4):
        p[at, at] = torch.nan
    bad, bad_weights = accept_block(drafts, lengths, p, q, u)
    assert all(0 <= n <= at for at, n in enumerate(bad[:4].tolist())), "nothing at or past it"
    assert torch.equal(bad[4:], accepted[4:]) and torch.equal(bad_weights[4:], weights[4:])


def test_empty_drafts_are_plain_decoding() -> None:
    p, _ = laws("random", 4, 0)
    none, lengths = torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    q = torch.zeros(3, 0, 4, dtype=torch.float64)
    accepted, weights = accept_block(none, lengths, p.repeat(3, 1, 1), q, torch.zeros(3, 0))
    assert accepted.tolist() == [0] * 3 and weights.tolist() == [1.0] * 3
    assert torch.allclose(residual(p, torch.zeros_like(p)), p)
