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
    tokens: None where no plan is to be made of them. `filling` goes into dropped layers' place;
    None without hole filling.
    """

    similarity_sums: Tensor | None = None
    similarity_weight: float = 0.0
    filling: RunningMean | None = None

    @property
    def similarity(self) -> tuple[float, ...]:
        """The mean similarity of each layer; empty where there is none."""
        if self.similarity_sums is None:
            return ()
        return tuple((self.similarity_sums / self.similarity_weight).tolist())

    def after_prompt(self, remake: bool) -> Learned:
        """Without the prompt's similarities; `remake` begins to gather those for another plan."""
        sums = self.similarity_sums
        return Learned(
            torch.zeros_like(sums) if remake and sums is not None else None, filling=self.filling
        )
