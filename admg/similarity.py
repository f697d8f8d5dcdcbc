"""ADMG's measure: how little an attention sub-layer turns the residual stream.

Shapes: T tokens of a pass, B sequences of the pass, L layers, D hidden size.

For each sequence and layer the cosine of x and x + Attn(norm(x)), fp32, over the prompt's tokens:
their mean, the last token's value, or a mean with decay towards the last (DESIGN §4.3.1, our
reading of the paper). Gathered during prefill, chunk by chunk, and for a plan that is to be remade
over the first verified tokens; no extra pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from admg.config import SimilarityMean


class SimilarityObserver:
    """Weighted sums of the cosines of one prefill pass: `sums` [B, L] fp32, `weight` [B] fp32.

    Args:
        first_positions: per segment, the position of its first token.
        counts: per segment, its tokens.
        prompt_lengths: per segment, the length of the whole prompt.
        kind: which tokens count, and how much.
        decay: weight of a token relative to the one after it, for "decay".
    """

    def __init__(
        self,
        first_positions: list[int],
        counts: list[int],
        prompt_lengths: list[int],
        num_layers: int,
        kind: SimilarityMean,
        decay: float,
        device: torch.device | str,
    ) -> None:
        owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        age = torch.cat(
            [
                torch.arange(n - f - 1, n - f - 1 - c, -1, dtype=torch.float64)
                for f, c, n in zip(first_positions, counts, prompt_lengths, strict=True)
            ]
        )
        weights = {"mean": torch.ones_like(age), "last": (age == 0).double()}.get(kind, decay**age)
        self._owner = owner.to(device)
        self._weights = weights.float().to(device)
        self.sums = torch.zeros(len(counts), num_layers, device=device)
        self.weight = torch.zeros(len(counts), device=device)
        self.weight.index_add_(0, self._owner, self._weights)

    def see(self, layer: int, x: Tensor, added: Tensor) -> None:
        """Add the cosines of input `x` [T, D] and output `x + added` of one attention layer."""
        cosines = _cosines(x.float(), (x + added).float())
        self.sums[:, layer].index_add_(0, self._owner, cosines * self._weights)


class CosinesObserver:
    """Keeps every token's cosines of one verification pass, until verdicts are known."""

    def __init__(self) -> None:
        self._cosines: list[Tensor] = []

    def see(self, layer: int, x: Tensor, added: Tensor) -> None:
        """Keep the cosines of one attention layer; layers come in order, each once."""
        self._cosines.append(_cosines(x.float(), (x + added).float()))

    @property
    def cosines(self) -> Tensor:
        """[L, T] fp32."""
        return torch.stack(self._cosines)


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    """Of the rows of x and y [T, D] fp32: [T]."""
    norms = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(y, dim=-1)
    cosines: Tensor = (x * y).sum(dim=-1) / norms.clamp_min(torch.finfo(torch.float32).tiny)
    return cosines
