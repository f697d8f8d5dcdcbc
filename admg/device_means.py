"""Running means of what attention adds, updated on the device (see `hole_filling`).

Shapes: B sequences, Q tokens of each in the pass, T = B*Q, L layers, K KV heads, G query heads of
one, d head size, D hidden size, P places.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from admg.device_passes import EvenAttention, EvenPass
from admg.kv_arena import KVArena
from admg.round_buffers import Means, RoundBuffers


def filling(means: Means, rows: RoundBuffers, limited: bool, dtype: torch.dtype) -> Tensor | None:
    """What goes into the holes of each sequence's plan, [L, B, D]; None without hole filling.

    Where a sequence limits heads of a layer, that is what its limits leave out.
    """
    if means.filling is None:
        return None
    place = rows.number("place")
    fill = _mean(means.filling[place], rows.fraction("filling_weight"))
    if limited and means.left_out is not None:
        left_out = _mean(means.left_out[place], rows.fraction("left_out_weight"))
        fill = torch.where(rows.limited.any(dim=2).T[..., None], left_out, fill)
    return fill.transpose(0, 1).to(dtype)


def _mean(sums: Tensor, weight: Tensor) -> Tensor:
    """[B, L, D] of sums [B, L, D]; 0 where the weight [B] is."""
    weight = weight.float()[:, None, None]
    return torch.where(weight > 0, sums / weight.where(weight > 0, 1.0), 0.0)


class Teaching:
    """Watches a verification pass, and puts what its verified tokens teach into the means.

    Args:
        means: to be updated.
        at: the pass.
        arena: where its keys are.
        decay: weight of a token relative to the one after it.
        window: keys that a limited head reads beside the first ones, where limits are learned of.
    """

    def __init__(
        self, means: Means, at: EvenPass, arena: KVArena, decay: float, window: int | None
    ) -> None:
        self._means, self._at, self._arena, self._decay = means, at, arena, decay
        self._window = window
        self._reads: EvenAttention | None = None
        self._added: list[Tensor] = []
        self._left_out: list[Tensor] = []

    def see(self, layer: int, x: Tensor, added: Tensor) -> None:
        """Keep what one attention layer adds, `added` [T, D]; layers come in order, each once."""
        self._added.append(added)

    def see_heads(
        self,
        layer: int,
        x: Tensor,
        added: Tensor,
        queries: Tensor,
        mixed: Tensor,
        project: Callable[[Tensor], Tensor],
    ) -> None:
        """Keep what the plans' limits would take away of one layer's output."""
        tokens, heads, d = mixed.shape
        limited = self._at.rows.limited[layer]  # [B, K]
        by_unit = (*self._at.real.shape, limited.shape[1], -1, d)  # [B, Q, K, G, d]
        near = self._near(heads // limited.shape[1]).attend(queries, layer, self._arena)
        near = near.view(by_unit)
        changed = torch.where(limited[:, None, :, None, None], near, mixed.view(by_unit))
        self._left_out.append((added - project(changed.reshape(tokens, heads * d))).float())

    def teach(self, verified: Tensor) -> None:
        """Take the first `verified` [B] real tokens of each sequence in; with 0 nothing."""
        rows, real = self._at.rows, self._at.real
        nth = self._at.positions - (rows.number("length") - 1)[:, None]  # [B, Q]
        count = verified[:, None]
        ages = (count - 1 - nth).clamp_min(0).double()
        weights = torch.where(real & (nth < count), self._decay**ages, 0.0).float()
        aged = (self._decay ** verified.double()).float()
        taught = verified > 0
        if self._means.filling is not None:
            self._update(self._means.filling, self._added, weights, aged, taught)
        if self._means.left_out is not None and self._left_out:
            taught = taught & rows.limited.any(dim=2).any(dim=0)
            self._update(self._means.left_out, self._left_out, weights, aged, taught)

    def _update(
        self, sums: Tensor, seen: list[Tensor], weights: Tensor, aged: Tensor, taught: Tensor
    ) -> None:
        """`sums` [P, L, D] after the tokens `seen` [L][T, D], by `weights` [B, Q]."""
        shape = (*weights.shape, -1)
        later = [torch.bmm(weights[:, None], x.view(shape).float())[:, 0] for x in seen]
        place = self._at.rows.number("place")
        before = sums[place]  # [B, L, D]
        after = aged[:, None, None] * before + torch.stack(later, dim=1)
        # Not a product: what is not finite must not touch a mean.
        sums.index_copy_(0, place, torch.where(taught[:, None, None], after, before))

    def _near(self, group: int) -> EvenAttention:
        """What every head would read were it limited; the same for all layers."""
        if self._reads is None:
            assert self._window is not None
            self._reads = self._at.near_reads(self._arena, group, self._window)
        return self._reads
