"""Attention of a ragged batch over the KV arena, in torch operations that run on any device.

Shapes: T tokens, H query heads, K KV heads, G = H/K query heads of one KV head, d head size,
n sequences of a group, Q most query tokens of a sequence in the group, C capacity of its extents.

Every query token sees the keys of its own sequence up to its own position: bottom-right causal,
from lengths. Two ways, chosen per segment by its number of tokens:

- few tokens (decoding, drafting, verification): neighbouring sequences with equal capacities form
  one group; per group two batched matmuls over (sequence, KV head) units with the query heads of a
  KV head folded into rows. They run over whole extents and mask what lies past the length: the
  units stay contiguous and their shapes repeat from step to step, and the CPU's matmul library
  copies the one and plans the other otherwise.
- many tokens (prefill): one segment at a time, on CPU in blocks of queries, elsewhere through
  `scaled_dot_product_attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from admg.batch import RaggedBatch, Segment
from admg.kv_arena import KVArena

FEW_TOKENS = 32
QUERY_BLOCK = 192


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that attend in one batched matmul.

    `index` are the n*Q tokens of the pass that ask: a slice where they stand in a row, int64 [n*Q]
    where a sequence with fewer than Q tokens repeats its last one. `mask` [n, 1, 1, Q, C] is added
    to the scores.
    """

    segments: tuple[Segment, ...]
    queries: int
    mask: Tensor
    index: Tensor | slice


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How one pass attends: groups of short segments, and the long segments one by one."""

    groups: tuple[Group, ...]
    long: tuple[Segment, ...]


def plan_attention(batch: RaggedBatch, dtype: torch.dtype) -> AttentionPlan:
    """Group the batch's segments; depends on lengths only, so it serves every layer of the pass."""
    short = [s for s in batch.segments if s.count <= FEW_TOKENS]
    long = tuple(s for s in batch.segments if s.count > FEW_TOKENS)
    groups = []
    for members in _neighbours(short):
        groups.append(_group(batch, members, dtype))
    return AttentionPlan(tuple(groups), long)


def attend(q: Tensor, layer: int, batch: RaggedBatch, arena: KVArena) -> Tensor:
    """Attention output [T, H, d] for queries [T, H, d]; keys of this pass are already written."""
    plan = batch.attention
    if not isinstance(plan, AttentionPlan):
        plan = batch.attention = plan_attention(batch, q.dtype)
    q = q * (1.0 / math.sqrt(q.shape[-1]))
    if len(plan.groups) == 1 and not plan.long and plan.groups[0].index == slice(0, len(q)):
        return _attend_group(q, layer, plan.groups[0], arena)
    out = torch.empty_like(q)
    for group in plan.groups:
        out[group.index] = _attend_group(q[group.index], layer, group, arena)
    for segment in plan.long:
        span = slice(segment.first, segment.first + segment.count)
        out[span] = _attend_long(q[span], layer, segment, arena)
    return out


def _neighbours(segments: list[Segment]) -> list[list[Segment]]:
    """Runs of segments whose extents adjoin and have equal capacities."""
    runs: list[list[Segment]] = []
    for s in sorted(segments, key=lambda s: s.extent.start):
        last = runs[-1][-1].extent if runs else None
        if last and last.end == s.extent.start and last.capacity == s.extent.capacity:
            runs[-1].append(s)
        else:
            runs.append([s])
    return runs


def _group(batch: RaggedBatch, members: list[Segment], dtype: torch.dtype) -> Group:
    device = batch.token_ids.device
    queries = max(s.count for s in members)
    tokens = [s.first + min(j, s.count - 1) for s in members for j in range(queries)]
    index = torch.tensor(tokens, dtype=torch.int64, device=device)
    seen = batch.positions[index].view(len(members), queries, 1)  # [n, Q, 1]
    hidden = torch.arange(members[0].extent.capacity, device=device) > seen  # [n, Q, C]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
    row = slice(tokens[0], tokens[0] + len(tokens))
    in_a_row = tokens == list(range(row.start, row.stop))
    return Group(tuple(members), queries, mask[:, None, None], row if in_a_row else index)


def _attend_group(q: Tensor, layer: int, group: Group, arena: KVArena) -> Tensor:
    n, num_queries = len(group.segments), group.queries
    kv_heads, d = arena.num_kv_heads, q.shape[-1]
    fold = q.shape[1] // kv_heads
    keys, values = arena.units(layer, group.segments[0].extent, n)  # [n*K, C, d]
    # [n*Q, H, d] -> [n*K, G*Q, d]: the query heads of a KV head become rows of its matmul.
    folded = q.view(n, num_queries, kv_heads, fold, d).permute(0, 2, 3, 1, 4)
    scores = torch.bmm(folded.reshape(n * kv_heads, fold * num_queries, d), keys.transpose(1, 2))
    scores.view(n, kv_heads, fold, num_queries, -1).add_(group.mask)
    out = torch.bmm(torch.softmax(scores, dim=-1), values)
    out = out.view(n, kv_heads, fold, num_queries, d).permute(0, 3, 1, 2, 4)
    return out.reshape(n * num_queries, kv_heads * fold, d)


def _attend_long(q: Tensor, layer: int, segment: Segment, arena: KVArena) -> Tensor:
    keys, values = (u[:, : segment.kv_length] for u in arena.units(layer, segment.extent, 1))
    if q.device.type == "cpu":
        return _attend_blocks(q, keys, values, segment.start)
    mask = None
    if segment.start:
        visible = torch.arange(segment.kv_length, device=q.device)
        own = torch.arange(segment.start, segment.kv_length, device=q.device)
        mask = visible <= own[:, None]  # [Q, N]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=1.0,
        enable_gqa=q.shape[1] != arena.num_kv_heads,
    )
    return out[0].transpose(0, 1)


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
