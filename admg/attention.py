"""Attention of a ragged batch over the KV arena: which way, by the device and by the batch.

Shapes: T tokens, H query heads, K KV heads, G = H/K query heads of one KV head, d head size.

Every query token sees the keys of its own sequence up to its own position: bottom-right causal,
from lengths. On CUDA all segments of a pass are the units of one call (`attention_varlen`). On the
CPU it is chosen per segment by its number of tokens:

- few tokens (decoding, drafting, verification): neighbouring sequences attend in batched matmuls,
  in groups of equal extents or in spans of pages, whichever reads faster here; where some have
  drafts and others have not, the drafts apart where that is cheaper than queries for all;
- many tokens (prefill): one segment at a time, in blocks of queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from admg.attention_groups import Group
from admg.attention_pages import Span
from admg.attention_varlen import PackedAttention
from admg.batch import RaggedBatch, Segment
from admg.kv_arena import Extent, KVArena

FEW_TOKENS = 32
QUERY_BLOCK = 192
# Measured on two cores, with 16 and 4 sequences of 300 to 1,300 slots (deploy/records): a group
# costs as much as reading this many numbers of keys, beside what it reads; a span reads slower than
# a group by this factor, and costs as much as this many groups.
GROUP_WORTH = 1200 * 192
PAGED_SHARE = 1.3
PAGED_FIXED = 2.0
# What another query of the same sequence adds to reading its keys once.
ANOTHER_QUERY = 0.25


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How one pass attends: short segments in groups and spans, and the long ones one by one."""

    short: tuple[Group | Span, ...]
    long: tuple[Segment, ...]

    def attend(self, q: Tensor, layer: int, arena: KVArena) -> Tensor:
        """Attention output [T, H, d] for queries [T, H, d], not scaled."""
        q = q * (1.0 / math.sqrt(q.shape[-1]))
        short = self.short
        if len(short) == 1 and not self.long and short[0].asking.index == slice(0, len(q)):
            return short[0].attend(q, layer, arena)
        out = torch.empty_like(q)
        for part in short:
            index = part.asking.index
            out[index] = part.attend(q[index], layer, arena)
        for segment in self.long:
            tokens = slice(segment.first, segment.first + segment.count)
            out[tokens] = _attend_long(q[tokens], layer, segment, arena)
        return out


def plan_attention(
    batch: RaggedBatch, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> AttentionPlan:
    """How the batch's segments attend; from lengths only, so it serves every layer of the pass."""
    short = sorted(
        (s for s in batch.segments if s.count <= FEW_TOKENS), key=lambda s: s.extent.start
    )
    long = tuple(s for s in batch.segments if s.count > FEW_TOKENS)
    worth = max(GROUP_WORTH // (kv_heads * head_dim), 1)
    arranged = _arranged(short, worth)
    drafts = [_without_first(s) for s in short if s.count > 1]
    if 0 < len(drafts) < len(short):
        ones = _arranged([replace(s, count=1) for s in short], worth)
        others = _arranged(drafts, worth)
        if ones.slots + others.slots < arranged.slots:
            arranged = _Arranged([*ones.groups, *others.groups], [*ones.spans, *others.spans])
    groups = (Group.of(batch, group, dtype) for group in arranged.groups)
    spans = (Span.of(batch, members, kv_heads, dtype) for members in arranged.spans)
    return AttentionPlan((*groups, *spans), long)


def attend(q: Tensor, layer: int, batch: RaggedBatch, arena: KVArena) -> Tensor:
    """Attention output [T, H, d] for queries [T, H, d]; keys of this pass are already written."""
    if batch.attention is None:
        kv_heads = arena.num_kv_heads
        if q.device.type == "cuda":
            batch.attention = PackedAttention.of(batch, kv_heads, q.shape[1] // kv_heads)
        else:
            batch.attention = plan_attention(batch, kv_heads, q.shape[-1], q.dtype)
    return batch.attention.attend(q, layer, arena)


def _runs(
    segments: Sequence[Segment], together: Callable[[Extent, Extent], bool]
) -> list[list[Segment]]:
    """Segments in runs, in which every two neighbours' extents go together."""
    runs: list[list[Segment]] = []
    for s in segments:
        if runs and together(runs[-1][-1].extent, s.extent):
            runs[-1].append(s)
        else:
            runs.append([s])
    return runs


def _are_equal_neighbours(one: Extent, other: Extent) -> bool:
    return one.end == other.start and one.capacity == other.capacity


@dataclass(slots=True)
class _Arranged:
    """Segments that attend together in groups and in spans; what it costs, in slots read."""

    groups: list[list[Segment]] = field(default_factory=list)
    spans: list[list[Segment]] = field(default_factory=list)
    slots: float = 0.0


def _arranged(short: Sequence[Segment], worth: int) -> _Arranged:
    """The cheapest way for segments in the order of their extents."""
    found = _Arranged()
    # Reading as many slots of others as a group is worth costs no more than another group.
    for members in _runs(short, lambda one, other: other.start - one.end <= worth):
        groups = _runs(members, _are_equal_neighbours)
        in_groups = sum(
            len(group) * group[0].extent.capacity * _work(group) + worth for group in groups
        )
        slots = members[-1].extent.end - members[0].extent.start
        in_span = PAGED_SHARE * slots * _work(members) + PAGED_FIXED * worth
        if in_groups <= in_span:
            found.groups += groups
            found.slots += in_groups
        else:
            found.spans.append(members)
            found.slots += in_span
    return found


def _work(members: Sequence[Segment]) -> float:
    """What a slot costs by the queries that see it, all as many as the most of them."""
    return 1 + ANOTHER_QUERY * (max(s.count for s in members) - 1)


def _without_first(s: Segment) -> Segment:
    return Segment(s.first + 1, s.count - 1, s.start + 1, s.extent)


def _attend_long(q: Tensor, layer: int, segment: Segment, arena: KVArena) -> Tensor:
    """Causal attention of q [Q, H, d], scaled already, over the keys that the segment sees."""
    keys, values = (u[:, : segment.kv_length] for u in arena.units(layer, segment.extent, 1))
    return _attend_blocks(q, keys, values, segment.start)


def _attend_blocks(q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """Causal attention of q [Q, H, d] at positions `start`.. over keys and values [K, N, d].

    Per KV head and block of queries two matmuls over the keys that the block sees: on CPU, in
    bf16, about twice as fast as the fused kernel, and the scores stay in cache.
    """
    count, heads, d = q.shape
    kv_heads = keys.shape[0]
    fold = heads // kv_heads
    folded = q.view(count, kv_heads, fold, d).permute(1, 2, 0, 3).contiguous()  # [K, G, Q, d]
    out = torch.empty_like(folded)
    for first in range(0, count, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, count)
        size, seen = last - first, start + last
        future = torch.full((size, size), -math.inf, dtype=q.dtype).triu_(1)
        for h in range(kv_heads):
            block = folded[h, :, first:last].reshape(fold * size, d)
            scores = torch.mm(block, keys[h, :seen].t())  # [G*size, seen]
            scores.view(fold, size, seen)[..., seen - size :].add_(future)
            mixed = torch.mm(torch.softmax(scores, dim=-1), values[h, :seen])
            out[h, :, first:last] = mixed.view(fold, size, d)
    return out.permute(2, 0, 1, 3).reshape(count, heads, d)
