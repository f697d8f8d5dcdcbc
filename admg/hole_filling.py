"""Hole filling: what a draft adds where its plan leaves an attention layer out.

Shapes: T tokens of a pass, B sequences of the pass, L layers, D hidden size.

A dropped sub-layer leaves a hole in the residual stream. Its output changes slowly from token to
token, so a running mean of what it added at the verified tokens of the same sequence is a good
guess, free of training and of passes. The first token of a prompt does not count: it is the
attention's sink, and nothing like the others. Drafts never enter the mean before they are
accepted, so the draft's law depends on verified tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

# A token of a smaller weight than this changes no digit of a mean in fp32.
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True, slots=True)
class RunningMean:
    """Of one sequence: sums over its verified tokens, in which older ones weigh less.

    `sums` [L, D] fp32 of what each attention sub-layer added, and the `weight` of all tokens
    together; 0 while no token counts. A value: it can be shared, and goes where its owner goes.
    """

    sums: Tensor
    weight: float

    @classmethod
    def empty(cls, num_layers: int, hidden_size: int, device: torch.device | str) -> RunningMean:
        """Of no token."""
        return cls(torch.zeros(num_layers, hidden_size, device=device), 0.0)

    def anew(self) -> RunningMean:
        """Of no token, in the same shape."""
        return RunningMean(torch.zeros_like(self.sums), 0.0)

    def over(self, values: Tensor, decay: float) -> RunningMean:
        """With the tokens that come next, whose own outputs are `values` [L, n, D]."""
        count = values.shape[1]
        weights = decay ** torch.arange(count - 1, -1, -1, dtype=torch.float64)
        sums = torch.einsum("n,lnd->ld", weights.float().to(values.device), values.float())
        return self.then(count, RunningMean(sums, float(weights.sum())), decay)

    @property
    def mean(self) -> Tensor:
        """[L, D] fp32; zeros where there is nothing to take a mean of."""
        return self.sums / self.weight if self.weight else self.sums

    def then(self, count: int, later: RunningMean, decay: float) -> RunningMean:
        """With the `count` tokens that come next, whose own sums are `later`."""
        aged = decay**count
        return RunningMean(aged * self.sums + later.sums, aged * self.weight + later.weight)


class FillingObserver:
    """Sums of one prefill pass, one `RunningMean` for each segment; keeps no token's output.

    Args:
        first_positions: per segment, the position of its first token.
        counts: per segment, its tokens.
        decay: weight of a token relative to the one after it.
    """

    def __init__(
        self,
        first_positions: Seq[int],
        counts: Seq[int],
        num_layers: int,
        hidden_size: int,
        decay: float,
        device: torch.device | str,
    ) -> None:
        self._decay = decay
        self._parts: list[tuple[slice, Tensor]] = []
        end = 0
        for position, count in zip(first_positions, counts, strict=True):
            end += count
            counted = count - (position == 0)
            weights = decay ** torch.arange(counted - 1, -1, -1, dtype=torch.float64)
            weights = weights[weights > _NEGLIGIBLE]
            self._parts.append((slice(end - len(weights), end), weights.float().to(device)))
        self._counts = tuple(counts)
        self._weights = [float(weights.sum()) for _, weights in self._parts]
        self._sums = torch.zeros(len(counts), num_layers, hidden_size, device=device)

    def see(self, layer: int, x: Tensor, added: Tensor) -> None:
        """Add what one attention layer adds, `added` [T, D]."""
        for sums, (span, weights) in zip(self._sums, self._parts, strict=True):
            # Segment by segment: one that is not finite must not touch the others' sums.
            sums[layer] = weights @ added[span].float()

    def onto(self, before: RunningMean | None, segment: int) -> RunningMean:
        """The mean of a segment's sequence, which was `before` ahead of this pass."""
        own = RunningMean(self._sums[segment].clone(), self._weights[segment])
        return own if before is None else before.then(self._counts[segment], own, self._decay)


class OutputsObserver:
    """Keeps what every attention layer adds in one verification pass, until verdicts are known."""

    def __init__(self) -> None:
        self._added: list[Tensor] = []

    def see(self, layer: int, x: Tensor, added: Tensor) -> None:
        """Keep `added` [T, D]; layers come in order, each once."""
        self._added.append(added)

    def onto(
        self, before: Seq[RunningMean | None], spans: Seq[tuple[int, int]], decay: float
    ) -> list[RunningMean | None]:
        """The sequences' means with the verified tokens of this pass.

        Args:
            before: per sequence its mean so far; None stays None.
            spans: per sequence (first token of the pass, verified tokens from there on); with 0
                tokens the mean stays as it is.
            decay: weight of a token relative to the one after it.
        """
        outputs = torch.stack(self._added)  # [L, T, D]
        after: list[RunningMean | None] = []
        for mean, (first, count) in zip(before, spans, strict=True):
            if mean is not None and count:
                mean = mean.over(outputs[:, first : first + count], decay)
            after.append(mean)
        return after


def fills(means: Seq[RunningMean | None], dtype: torch.dtype) -> Tensor | None:
    """What each layer adds to a token of each sequence that skips it, [L, B, D]; None: nothing."""
    known = next((m for m in means if m is not None), None)
    if known is None:
        return None
    nothing = torch.zeros_like(known.sums)
    return torch.stack([nothing if m is None else m.mean for m in means], dim=1).to(dtype)
