"""Attention of a draft pass whose units have budgets of their own: all keys, a window, or none.

Shapes: n sequences, one token each; H query heads, K KV heads, G = H/K, d head size, U units of one
budget, S slots that a limited unit reads, M most pages of a sequence, P slots of a page.

A unit, (sequence, KV head), reads its own budget and nothing else: limited ones gather S rows of
the arena, the others the pages up to their sequence's length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.batch import RaggedBatch, mask_of
from admg.kv_arena import SLOT_GRAIN, KVArena, first_rows
from admg.windows import Near, attend_rows


@dataclass(frozen=True, slots=True)
class Units:
    """Units of one budget: `index` [U] into n*K, `rows` [U, S or M*P], `mask` [U, 1, S or M*P]."""

    index: Tensor
    rows: Tensor
    mask: Tensor

    def attend(self, folded: Tensor, layer: int, arena: KVArena, out: Tensor) -> None:
        """Write the units' outputs into `out` [n*K, G, d] for queries `folded` [n*K, G, d]."""
        out[self.index] = attend_rows(folded[self.index], layer, self.rows, self.mask, arena)


@dataclass(frozen=True, slots=True)
class UnitAttention:
    """How one layer of the pass attends."""

    parts: tuple[Units, ...]

    def attend(self, q: Tensor, layer: int, arena: KVArena) -> Tensor:
        """Attention output [n, H, d] for queries [n, H, d], not scaled."""
        n, heads, d = q.shape
        kv_heads = arena.num_kv_heads
        folded = (q * (1.0 / math.sqrt(d))).view(n * kv_heads, heads // kv_heads, d)
        out = torch.empty_like(folded)
        for part in self.parts:
            part.attend(folded, layer, arena, out)
        return out.view(n, heads, d)


class UnitReader:
    """Where the keys of every unit of one draft pass are, for layers to choose from."""

    def __init__(self, batch: RaggedBatch, window: int, kv_heads: int, dtype: torch.dtype) -> None:
        assert all(s.count == 1 for s in batch.segments)
        extents, positions = [s.extent for s in batch.segments], batch.positions
        self.kv_heads = kv_heads
        self._near = Near.of(extents, positions, window, kv_heads, dtype)
        slots = int(positions.max()) // SLOT_GRAIN * SLOT_GRAIN + SLOT_GRAIN
        at = torch.arange(slots, device=positions.device)
        hidden = at > positions[:, None]  # [n, M*P]
        capacity = torch.tensor([e.capacity for e in extents], device=positions.device)
        # A shorter sequence's rows go no further than its own: what is hidden is not read twice.
        own = torch.minimum(at, capacity[:, None] - 1)[:, None]
        first = first_rows(extents, kv_heads, positions.device)
        self._rows = first[:, :, None] + own  # [n, K, M*P]
        self._mask = mask_of(hidden, dtype)

    def layer(self, members: list[int], limited: list[tuple[int, ...]]) -> UnitAttention:
        """For a layer that the sequences `members` run, `limited` naming the heads of each."""
        near: list[tuple[int, int, int]] = []
        whole: list[tuple[int, int, int]] = []
        for i, heads in enumerate(limited):
            for h in range(self.kv_heads):
                (near if h in heads else whole).append((i, members[i], h))
        parts = ((near, self._near.rows, self._near.mask), (whole, self._rows, self._mask))
        return UnitAttention(tuple(self._units(*part) for part in parts if part[0]))

    def _units(self, units: list[tuple[int, int, int]], rows: Tensor, mask: Tensor) -> Units:
        place, sequence, head = torch.tensor(units, device=rows.device).T
        return Units(place * self.kv_heads + head, rows[sequence, head], mask[sequence][:, None])
