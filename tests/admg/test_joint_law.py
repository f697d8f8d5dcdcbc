"""The joint law of the first three tokens of whole decode loops, and mutants that must fail.

Power: with N draws and an effect of w2 = sum (wrong - right)^2 / right, Pearson's test at 1e-4
misses with less than 1 % when N w2 is above 150 (215 degrees of freedom) or 400 (1727). At
N = 200 000 a w2 of .002 is caught, a tenth of what the mildest known bug of this kind has.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from admg import noise, verify
from tests.admg.toy_decoding import ROWS, CoarseToy, Decoding, Toy, bases, position_keys
from tests.admg.toy_ways import (
    CAUGHT,
    Discards,
    ExitAfterKeeping,
    ExitBeforeDrawing,
    OwnNoise,
    PointMass,
    Rejection,
    Shared,
    named,
    sure_prefix,
)


class CoarseUniforms(Rejection):
    """Uniform numbers of [0, 1) that are often 0."""

    def uniform(self, rows: Tensor, at: Tensor, j: int) -> Tensor:
        return (super().uniform(rows, at, j) * 16).floor() / 16


# Mutants of token verification.


class NoResidual(Rejection):
    def following_law(self, p: Tensor, q: Tensor) -> Tensor:
        return p


class AbsoluteResidual(Rejection):
    def following_law(self, p: Tensor, q: Tensor) -> Tensor:
        rest = (p - q).abs()
        return rest / rest.sum(dim=1, keepdim=True)


class DraftsResidual(Rejection):
    """The residual in the wrong direction."""

    def following_law(self, p: Tensor, q: Tensor) -> Tensor:
        return p.where((q == 0).all(dim=1, keepdim=True), verify.residual(q, p))


class DiscardsByRejection(Discards, Rejection):
    pass


class VerifiesAnotherLaw(Rejection):
    """Drawn from q, verified with q at temperature 1.25."""

    def verified_laws(self, q: Tensor) -> Tensor:
        return q.pow(0.8) / q.pow(0.8).sum(dim=2, keepdim=True)


class PointMassVerifiedAsDrawn(Rejection):
    """The most likely token for certain, verified as if drawn from the law."""

    def propose(
        self, rows: Tensor, at: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        _, q, _ = super().propose(rows, at, past)
        drafts = q[:, :1].argmax(dim=2)
        return drafts, q, torch.ones(len(rows), dtype=torch.int64)


class BonusOfTheLastDraft(Rejection):
    """The bonus token is drawn from the law at the last draft token, not after it."""

    def target_laws(self, p: Tensor, lengths: Tensor) -> Tensor:
        p, everyone = p.clone(), torch.arange(len(p))
        p[everyone, lengths] = p[everyone, (lengths - 1).clamp(min=0)]
        return p


class OneNoiseForDraftAndResidual(Rejection):
    def keys(
        self, rows: Tensor, at: Tensor, j: int | Tensor, purpose: int = noise.TARGET
    ) -> Tensor:
        return super().keys(rows, at, j, noise.DRAFT if purpose == noise.RESIDUAL else purpose)


class OneUniformForAllPositions(Rejection):
    def uniform(self, rows: Tensor, at: Tensor, j: int) -> Tensor:
        return super().uniform(rows, torch.zeros_like(at), 0)


class RejectionCountsFromTheRound(Rejection):
    """Positions are counted inside the round, so the next round meets the same numbers."""

    def keys(
        self, rows: Tensor, at: Tensor, j: int | Tensor, purpose: int = noise.TARGET
    ) -> Tensor:
        return super().keys(rows, torch.zeros_like(at), j, purpose)


class AcceptsEquality(CoarseUniforms):
    """`u q <= p`: with u = 0 tokens come through that the target never gives."""

    def accept_token(
        self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
    ) -> Tensor:
        px, qx = (law.gather(2, drafts[..., None])[..., 0] for law in (p, q))
        inside = torch.arange(self.longest) < lengths[:, None]
        return sure_prefix((u * qx <= px) & inside)


# Mutants of shared noise.


class CountsOneBackAfterEachRound(Shared):
    """The position forgets the bonus token: its noise comes again."""

    def keys(
        self, rows: Tensor, at: Tensor, j: int | Tensor, purpose: int = noise.TARGET
    ) -> Tensor:
        return super().keys(rows, (at - 1).clamp(min=0), j, purpose)


class SharedCountsFromTheRound(Shared):
    def keys(
        self, rows: Tensor, at: Tensor, j: int | Tensor, purpose: int = noise.TARGET
    ) -> Tensor:
        return super().keys(rows, torch.zeros_like(at), j, purpose)


class OneNoiseForAllRows(Shared):
    def keys(
        self, rows: Tensor, at: Tensor, j: int | Tensor, purpose: int = noise.TARGET
    ) -> Tensor:
        return super().keys(torch.zeros_like(rows), at, j, purpose)


class KeepsOneTooMany(Shared):
    """The first draft token that differs from the target's is kept."""

    def accept_shared(self, drafts: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        accepted = verify.accept_shared(drafts, lengths, targets)
        return torch.minimum(accepted + 1, lengths)


class TargetOfTheLastDraft(Shared):
    """The token after a full acceptance is drawn one context too early."""

    target_laws = BonusOfTheLastDraft.target_laws


class AcceptsLikelyTokens(Shared):
    """A draft token stays if the target draws a token less than three ids away."""

    def accept_shared(self, drafts: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        near = (drafts - targets[:, : self.longest]).abs() < 3
        return sure_prefix(near & (torch.arange(self.longest) < lengths[:, None]))


RIGHT = [
    (named(*ways, mode), vocab, longest)
    for mode in (Shared, Rejection)
    for ways, vocab, longest in [
        ((), 6, 1),
        ((), 6, 2),
        ((), 12, 2),
        ((), 6, 4),
        ((PointMass,), 6, 2),
        ((ExitAfterKeeping,), 12, 4),
        ((ExitBeforeDrawing,), 6, 4),
    ]
] + [(named(Discards, Shared), 6, 4), (named(OwnNoise, Shared), 6, 2)]

MUTANTS = [
    NoResidual,
    AbsoluteResidual,
    DraftsResidual,
    DiscardsByRejection,
    VerifiesAnotherLaw,
    PointMassVerifiedAsDrawn,
    BonusOfTheLastDraft,
    OneNoiseForDraftAndResidual,
    OneUniformForAllPositions,
    RejectionCountsFromTheRound,
    CountsOneBackAfterEachRound,
    SharedCountsFromTheRound,
    OneNoiseForAllRows,
    KeepsOneTooMany,
    TargetOfTheLastDraft,
    AcceptsLikelyTokens,
]


@pytest.mark.parametrize(
    ("way", "vocab", "longest"), RIGHT, ids=[f"{w.__name__}-V{v}-K{k}" for w, v, k in RIGHT]
)
def test_decoding_follows_the_joint_law(way: type[Decoding], vocab: int, longest: int) -> None:
    loop = way(Toy(vocab, seed=1), longest)
    result = loop.run()
    assert result.good, result
    # All that can happen at the end of a round has happened, and rounds followed rounds.
    assert min(loop.recovered, loop.bonus) > ROWS / 20
    assert loop.rounds >= 3


def test_shared_noise_gives_one_text_whatever_the_drafts() -> None:
    rows, toy, text = torch.arange(2000), Toy(12, seed=2), [torch.zeros(2000).long()] * 2
    hashes = noise.token_hash(torch.arange(12))
    for t in range(3):
        keys = position_keys(bases()[:2000], torch.full_like(rows, t).numpy(), noise.TARGET)
        law = toy.target[text[-2] * 12 + text[-1]]
        text.append(noise.race(law, noise.exponential(keys, hashes)))
    plain = torch.stack(text[2:], dim=1)
    for way in (Shared, *(named(w, Shared) for w in (PointMass, ExitAfterKeeping, OwnNoise))):
        assert torch.equal(way(toy, 3).decode(rows), plain)


@pytest.mark.slow  # of the tests above, not of the engine
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: type[Decoding]) -> None:
    longest = 1 if mutant is PointMassVerifiedAsDrawn else 2
    assert mutant(Toy(6, seed=1), longest).run().p_value < CAUGHT


def test_strictness_shows_where_uniform_numbers_can_be_zero() -> None:
    result = CoarseUniforms(CoarseToy(seed=1), 2).run()
    assert result.good, result
    assert AcceptsEquality(CoarseToy(seed=1), 2).run().p_value < CAUGHT


@pytest.mark.parametrize("purpose", [noise.TARGET, noise.DRAFT, noise.RESIDUAL, noise.ACCEPT])
def test_the_loop_has_the_real_position_keys(purpose: int) -> None:
    rows = range(0, ROWS, 97)
    at = torch.arange(len(rows)) % 7
    expected = [
        noise.position_key(noise.stream(11, f"row {i}"), t, purpose)
        for i, t in zip(rows, at.tolist(), strict=True)
    ]
    assert position_keys(bases()[list(rows)], at.numpy(), purpose).tolist() == expected
