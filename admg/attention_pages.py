"""Attention of neighbouring sequences whatever their extents: page by page, then merged.

Shapes: H query heads, K KV heads, G = H/K query heads of one KV head, d head size, n sequences of
a span, Q most query tokens of a sequence in it, R = G*Q rows, P slots of a page, U pages.

Extents begin and end on whole pages, and so do the slots of each of their KV heads, so the slots of
a span are U pages of equal size: two batched matmuls serve all of them, and what the pages of one
unit, (sequence, KV head), contribute is summed with the weights exp(score - the unit's greatest
score), as in Flash-Decoding. Pages between the members belong to one more unit, which nobody reads.

More work for each slot than attention over groups, but none for each group: on the CPU it pays
where equal extents do not lie side by side (a running batch after its first sequences have ended).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.attention_groups import Asking
from admg.batch import RaggedBatch, Segment, mask_of
from admg.kv_arena import SLOT_GRAIN, KVArena


@dataclass(frozen=True, slots=True)
class Span:
    """Sequences that attend together over the slots [first, last) of the arena.

    `unit` [U] is whose page each one is: i*K + h for KV head h of the i-th sequence, n*K for
    nobody's. `pages` [n*K, most pages of a unit] are the pages of each unit, some of them
    repeated. `mask` [U, 1, Q, P] is added to the scores.
    """

    segments: tuple[Segment, ...]
    asking: Asking
    first: int
    last: int
    unit: Tensor
    pages: Tensor
    mask: Tensor

    @classmethod
    def of(
        cls, batch: RaggedBatch, members: Sequence[Segment], kv_heads: int, dtype: torch.dtype
    ) -> Span:
        """Of segments in the order of their extents."""
        asking = Asking.of(batch, members)
        first, last = members[0].extent.start, members[-1].extent.end
        num_units, num_pages = len(members) * kv_heads, (last - first) // SLOT_GRAIN * kv_heads
        unit = torch.full((num_pages,), num_units)
        start = torch.zeros(num_pages, dtype=torch.int64)  # position of a page's first slot
        most = max(s.extent.capacity for s in members) // SLOT_GRAIN
        pages = torch.empty(num_units, most, dtype=torch.int64)
        for i, s in enumerate(members):
            each = s.extent.capacity // SLOT_GRAIN
            begin = (s.extent.start - first) // SLOT_GRAIN * kv_heads
            own = slice(begin, begin + each * kv_heads)
            heads = torch.arange(kv_heads)
            unit[own] = (i * kv_heads + heads).repeat_interleave(each)
            start[own] = (torch.arange(each) * SLOT_GRAIN).repeat(kv_heads)
            nth = torch.arange(most).clamp_(max=each - 1)
            pages[i * kv_heads : (i + 1) * kv_heads] = begin + heads[:, None] * each + nth
        device = batch.token_ids.device
        unit, start, pages = unit.to(device), start.to(device), pages.to(device)
        mask = _mask(asking.positions, unit, start, kv_heads, dtype)
        return cls(tuple(members), asking, first, last, unit, pages, mask)

    def attend(self, q: Tensor, layer: int, arena: KVArena) -> Tensor:
        """Attention output [n*Q, H, d] for queries [n*Q, H, d], which are scaled already."""
        keys, values = arena.pages(layer, self.first, self.last)  # [U, P, d]
        folded = self.asking.fold(q, arena.num_kv_heads)  # [n*K, R, d]
        units, rows, d = folded.shape
        asked = self.unit.clamp(max=units - 1)  # nobody's pages are asked by anybody
        scores = torch.bmm(folded[asked], keys.transpose(1, 2))  # [U, R, P]
        scores.view(len(self.unit), -1, *self.mask.shape[2:]).add_(self.mask)
        greatest = scores.amax(-1)[self.pages].amax(1)  # [n*K, R]
        weights = scores.sub_(greatest[asked][:, :, None]).exp_()
        sums = torch.zeros(units + 1, rows, device=q.device)
        sums.index_add_(0, self.unit, weights.sum(-1, dtype=torch.float32))
        out = torch.zeros(units + 1, rows, d, device=q.device)
        out.index_add_(0, self.unit, torch.bmm(weights, values).float())
        merged = out[:units] / sums[:units, :, None]
        return self.asking.unfold(merged.to(q.dtype), arena.num_kv_heads)


def _mask(
    positions: Tensor, unit: Tensor, start: Tensor, kv_heads: int, dtype: torch.dtype
) -> Tensor:
    """Scores' summands [U, 1, Q, P] for queries at `positions` [n, Q]; nobody's pages as they are.

    All of a page may be hidden; never all pages of a unit.
    """
    seen = positions[(unit // kv_heads).clamp_(max=len(positions) - 1)]  # [U, Q]
    slots = start[:, None, None] + torch.arange(SLOT_GRAIN, device=unit.device)  # [U, 1, P]
    return mask_of(slots > seen[:, :, None], dtype)[:, None]
