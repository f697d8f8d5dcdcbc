"""What the verified tokens of one sequence have taught so far, as a value that goes with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from admg.hole_filling import RunningMean


@dataclass(frozen=True, slots=True)
class Learned:
    """Sums over verified tokens; nothing is kept of single ones.

    `similarity_sums` [L] fp32 of the layers' similarities and the `similarity_weight` of their
    tokens: None where no plan is to be made of them. `unit_sums` [L, K] and `unit_weight` are the
    same for limits of KV heads. `filling` goes into dropped layers' place, `left_out` into that of
    what the plan's limits leave out; None without hole filling.
    """

    similarity_sums: Tensor | None = None
    similarity_weight: float = 0.0
    filling: RunningMean | None = None
    unit_sums: Tensor | None = None
    unit_weight: float = 0.0
    left_out: RunningMean | None = None

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

    def after_prompt(self, remake: bool, windows: bool) -> Learned:
        """Without the prompt's similarities; `remake` begins to gather those for another plan.

        With `windows` and hole filling, what limits leave out is learned from here on.
        """
        filling = self.filling
        return Learned(
            _anew(self.similarity_sums) if remake else None,
            filling=filling,
            unit_sums=_anew(self.unit_sums) if remake else None,
            left_out=None if filling is None or not windows else filling.anew(),
        )


def _anew(sums: Tensor | None) -> Tensor | None:
    return None if sums is None else torch.zeros_like(sums)
