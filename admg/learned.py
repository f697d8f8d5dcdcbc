"""What the verified tokens of one sequence have taught so far, as a value that goes with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admg.hole_filling import RunningMean


@dataclass(frozen=True, slots=True)
class Learned:
    """Sums over verified tokens; nothing is kept of single ones.

    `similarity_sums` [L] fp32 of the layers' similarities and the `similarity_weight` of their
    tokens: None where no plan is to be made of them. `unit_sums` [L, K] and `unit_weight` are the
    same for limits of KV heads. `filling` goes into dropped layers' place, `left_out` into that of
    what the plan's limits leave out; None without hole filling. `until_remade` are the verified
    tokens that are still to come before the next plan is made of the sums.
    """

    similarity_sums: Tensor | None = None
    similarity_weight: float = 0.0
    filling: RunningMean | None = None
    unit_sums: Tensor | None = None
    unit_weight: float = 0.0
    left_out: RunningMean | None = None
    until_remade: int = 0

    @property
    def similarity(self) -> tuple[float, ...]:
        """The mean similarity of each layer; empty where there is none."""
        if self.similarity_sums is None:
            return ()
        return tuple((self.similarity_sums / self.similarity_weight).tolist())

    @property
    def units(self) -> list[list[float]] | None:
        """The mean similarity of each layer's KV heads, limited; None where none is known."""
        if self.unit_sums is None or not self.unit_weight:
            return None
        means: list[list[float]] = (self.unit_sums / self.unit_weight).tolist()
        return means

    def after_prompt(self, until_remade: int | None, windows: bool) -> Learned:
        """Without the prompt's similarities; those for another plan are gathered from here on.

        With `until_remade` None there will be none. With `windows` and hole filling, what limits
        leave out is learned from here on.
        """
        filling, remake = self.filling, until_remade is not None
        return Learned(
            _anew(self.similarity_sums) if remake else None,
            filling=filling,
            unit_sums=_anew(self.unit_sums) if remake else None,
            left_out=None if filling is None or not windows else filling.anew(),
            until_remade=until_remade or 0,
        )

    def with_similarities(self, cosines: Tensor, decay: float = 1.0) -> Learned:
        """With the layers' similarities [L, n] of further tokens.

        A token weighs `decay` of the one after it.
        """
        assert self.similarity_sums is not None
        weights, aged = _weights(cosines.shape[1], decay)
        sums = aged * self.similarity_sums + cosines @ weights.to(cosines.device)
        weight = aged * self.similarity_weight + float(weights.sum())
        return replace(self, similarity_sums=sums, similarity_weight=weight)

    def with_units(self, similarity: Tensor, decay: float = 1.0) -> Learned:
        """With the similarities [L, n, K] of further tokens' limited units, weighed likewise."""
        weights, aged = _weights(similarity.shape[1], decay)
        sums = torch.einsum("lnk,n->lk", similarity, weights.to(similarity.device))
        if self.unit_sums is not None:
            sums = aged * self.unit_sums + sums
        weight = aged * self.unit_weight + float(weights.sum())
        return replace(self, unit_sums=sums, unit_weight=weight)


def _weights(count: int, decay: float) -> tuple[Tensor, float]:
    """[n] fp32 of so many tokens, and what is left of those before them."""
    ages = torch.arange(count - 1, -1, -1, dtype=torch.float64)
    return (decay**ages).float(), decay**count


def _anew(sums: Tensor | None) -> Tensor | None:
    return None if sums is None else torch.zeros_like(sums)
