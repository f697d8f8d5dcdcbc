"""The joint law of whole decode loops with block verification, and mutants that must fail.

As in `test_joint_law`, whose note on power holds here.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.admg.toy_decoding import ROWS, Decoding, Toy
from tests.admg.toy_ways import (
    CAUGHT,
    Block,
    Discards,
    ExitAfterKeeping,
    ExitBeforeDrawing,
    PointMass,
    named,
)


class BlockWithOldNoise(Block):
    """What was past the accepted prefix has its noise again in the next round."""

    def salt(self) -> int:
        return 0


class BlockForgetsTheWeight(Block):
    """The token after the prefix is drawn as token verification would."""

    def accept(
        self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        accepted, weights = super().accept(drafts, lengths, p, q, u)
        return accepted, torch.ones_like(weights)


class BlockKeepsByWeight(Block):
    """The longest prefix whose weight is above u: bars belong to the whole draft alone."""

    def accept(
        self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        accepted, weights = torch.zeros_like(lengths), torch.ones(len(p), dtype=p.dtype)
        w = weights
        for j in range(self.longest):
            px, qx = (law[:, j].gather(1, drafts[:, j, None])[:, 0] for law in (p, q))
            w = (w * px / qx).clamp(max=1)
            kept = (u[:, j] < w) & (j < lengths)
            accepted, weights = accepted.where(~kept, j + 1), weights.where(~kept, w)
        return accepted, weights


class BlockEndsAtARefusal(Block):
    """The first refused prefix ends the block, as in token verification."""

    def accept(
        self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        accepted, weights = torch.zeros_like(lengths), torch.ones(len(p), dtype=p.dtype)
        for j in range(self.longest):
            one = u.where(torch.arange(self.longest) == j, torch.ones_like(u))
            n, w = super().accept(drafts, lengths, p, q, one)
            more = (accepted == j) & (n == j + 1)
            accepted, weights = accepted.where(~more, j + 1), weights.where(~more, w)
        return accepted, weights


class BlockDiscards(Discards, Block):
    pass


RIGHT = [
    ((), 6, 1),
    ((), 6, 2),
    ((), 6, 3),
    ((), 12, 2),
    ((), 6, 5),
    ((PointMass,), 6, 2),
    ((ExitAfterKeeping,), 12, 4),
    ((ExitBeforeDrawing,), 6, 4),
]
MUTANTS = [
    BlockWithOldNoise,
    BlockForgetsTheWeight,
    BlockKeepsByWeight,
    BlockEndsAtARefusal,
    BlockDiscards,
]


@pytest.mark.parametrize(("ways", "vocab", "longest"), RIGHT)
def test_decoding_follows_the_joint_law(
    ways: tuple[type[Decoding], ...], vocab: int, longest: int
) -> None:
    loop = named(*ways, Block)(Toy(vocab, seed=1), longest)
    result = loop.run()
    assert result.good, result
    # All that can happen at the end of a round has happened, and rounds followed rounds.
    assert min(loop.recovered, loop.bonus) > ROWS / 20
    assert loop.rounds >= 3


@pytest.mark.slow  # of the tests above, not of the engine
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: type[Decoding]) -> None:
    assert mutant(Toy(6, seed=1), 4).run().p_value < CAUGHT
