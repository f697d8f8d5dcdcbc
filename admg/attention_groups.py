"""Attention of neighbouring sequences whose extents have equal capacities: two batched matmuls.

Shapes: H query heads, K KV heads, G = H/K query heads of one KV head, d head size, n sequences of
a group, Q most query tokens of a sequence in the group, C capacity of its extents.

The units of a group, (sequence, KV head), lie side by side in the arena. The query heads of a KV
head are folded into the rows of its matmul. They run over whole extents and mask what lies past
the length: the units stay contiguous and their shapes repeat from step to step, and the CPU's
matmul library copies the one and plans the other otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.batch import RaggedBatch, Segment, mask_of
from admg.kv_arena import KVArena


@dataclass(frozen=True, slots=True)
class Asking:
    """The n*Q tokens of a pass that ask on behalf of n segments.

    `index` is a slice where they stand in a row, int64 [n*Q] where a segment with fewer than Q
    tokens repeats its last one; `positions` [n, Q] are theirs.
    """

    queries: int
    index: Tensor | slice
    positions: Tensor

    @classmethod
    def of(cls, batch: RaggedBatch, members: Sequence[Segment]) -> Asking:
        """What the segments ask."""
        queries = max(s.count for s in members)
        tokens = [s.first + min(j, s.count - 1) for s in members for j in range(queries)]
        index = torch.tensor(tokens, dtype=torch.int64, device=batch.token_ids.device)
        row = slice(tokens[0], tokens[0] + len(tokens))
        in_a_row = tokens == list(range(row.start, row.stop))
        positions = batch.positions[index].view(len(members), queries)
        return cls(queries, row if in_a_row else index, positions)

    def fold(self, q: Tensor, kv_heads: int) -> Tensor:
        """Queries [n*Q, H, d] as rows of their KV heads' matmuls, [n*K, G*Q, d]."""
        n, (_, heads, d) = len(self.positions), q.shape
        rows = q.view(n, self.queries, kv_heads, heads // kv_heads, d).permute(0, 2, 3, 1, 4)
        return rows.reshape(n * kv_heads, -1, d)

    def unfold(self, out: Tensor, kv_heads: int) -> Tensor:
        """The way back, [n*K, G*Q, d] to [n*Q, H, d]."""
        n, d = len(self.positions), out.shape[-1]
        rows = out.view(n, kv_heads, -1, self.queries, d).permute(0, 3, 1, 2, 4)
        return rows.reshape(n * self.queries, -1, d)


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that attend together; `mask` [n, 1, 1, Q, C] is added to the scores."""

    segments: tuple[Segment, ...]
    asking: Asking
    mask: Tensor

    @classmethod
    def of(cls, batch: RaggedBatch, members: Sequence[Segment], dtype: torch.dtype) -> Group:
        """Of segments whose extents adjoin and have equal capacities."""
        asking = Asking.of(batch, members)
        slots = torch.arange(members[0].extent.capacity, device=batch.token_ids.device)
        hidden = slots > asking.positions[:, :, None]  # [n, Q, C]
        return cls(tuple(members), asking, mask_of(hidden, dtype)[:, None, None])

    def attend(self, q: Tensor, layer: int, arena: KVArena) -> Tensor:
        """Attention output [n*Q, H, d] for queries [n*Q, H, d], which are scaled already."""
        n, kv_heads = len(self.segments), arena.num_kv_heads
        keys, values = arena.units(layer, self.segments[0].extent, n)  # [n*K, C, d]
        scores = torch.bmm(self.asking.fold(q, kv_heads), keys.transpose(1, 2))
        scores.view(n, kv_heads, -1, self.asking.queries, keys.shape[1]).add_(self.mask)
        out = torch.bmm(torch.softmax(scores, dim=-1), values)
        return self.asking.unfold(out, kv_heads)
