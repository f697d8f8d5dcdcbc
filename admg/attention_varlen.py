"""Attention over units of the KV arena: ragged on both sides, and every unit's range is data.

Shapes: U units, N rows of queries, h query heads in a row (all on the unit's one KV head), d head
size, R rows of one layer of the arena, P parts of a unit's keys.

A unit is a run of arena rows and the queries that read it: usually (sequence, KV head). Where it
begins and how much of it is read are tensors on the device, so one sequence of calls serves every
batch and every plan: a dropped layer is a unit of length 0, which reads nothing, and a limited head
reads two parts, its first keys and its last ones, merged by their log-sum-exps (Flash-Decoding).

Two kernels have this one contract. `varlen_kernel` is torch's own on CUDA, without splits over the
keys: a unit's result then depends on nothing that stands beside it. `plain_kernel` is made of torch
operations; it runs anywhere, in any dtype, and takes over where the other one is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from admg.batch import RaggedBatch
from admg.kv_arena import KVArena

_LOG = logging.getLogger(__name__)
# Slots that the plain kernel reads at a time.
BLOCK = 512
# Of the flash kernels: half precision, head sizes up to this and a multiple of 8, Ampere or later.
_LARGEST_HEAD = 256
_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Units:
    """What one call reads, and for whom.

    `starts` [U+1] int32 are the units' first rows in the arena (the last entry is never read) and
    `lengths` [U] int32 the rows that they read; `asks` [U+1] int32 says where each unit's rows of
    queries begin and the last ones end. `queries` and `longest` bound what a unit has of them and
    what it reads. `causal`: a unit's last query sees all of `lengths`, the one before it one key
    less, and so on; otherwise all see the same. With `window` a query sees no more than that many
    keys, the last ones.
    """

    starts: Tensor
    lengths: Tensor
    asks: Tensor
    queries: int
    longest: int
    causal: bool
    window: int | None = None

    @classmethod
    def even(
        cls,
        starts: Tensor,
        lengths: Tensor,
        queries: int,
        longest: int,
        *,
        causal: bool,
        window: int | None = None,
    ) -> Units:
        """Units [U] of equally many queries each."""
        asks = torch.arange(len(lengths) + 1, dtype=torch.int32, device=lengths.device) * queries
        bounds = torch.cat([starts, starts[-1:]]).int()
        return cls(bounds, lengths.int(), asks, queries, longest, causal, window)


# (queries [N, h, d], keys [R, d], values [R, d], units) -> outputs [N, h, d], lse [N, h] fp32,
# which is -inf where nothing was read (the output is 0 there).
Kernel = Callable[[Tensor, Tensor, Tensor, Units], tuple[Tensor, Tensor]]


def plain_kernel(q: Tensor, keys: Tensor, values: Tensor, units: Units) -> tuple[Tensor, Tensor]:
    """Attention in torch operations: blocks of slots for all units at once, sums in fp32.

    Reads no row beyond a unit's length, asks the device for nothing, and has shapes that depend on
    `units.queries` and `units.longest` alone.
    """
    n, d = len(q), q.shape[-1]
    begin, lengths = units.asks[:-1].long(), units.lengths.long()
    counts = units.asks.long().diff()  # [U]
    turn = torch.arange(units.queries, device=q.device)
    asked = q[(begin[:, None] + turn).clamp_max(n - 1)].float() * d**-0.5  # [U, Q, h, d]
    seen = lengths[:, None].expand(-1, units.queries)
    if units.causal:
        seen = seen - counts[:, None] + 1 + turn  # [U, Q]
    first = torch.zeros_like(seen) if units.window is None else seen - units.window
    best = torch.full(asked.shape[:3], -torch.inf, device=q.device)  # [U, Q, h]
    total, mixed = torch.zeros_like(best), torch.zeros_like(asked)
    for block in range(0, max(units.longest, 1), BLOCK):
        slots = torch.arange(block, min(block + BLOCK, max(units.longest, 1)), device=q.device)
        own = torch.minimum(slots, (lengths - 1).clamp_min(0)[:, None])  # [U, S]
        rows = units.starts[:-1, None].long() + own
        scores = torch.einsum("uqhd,usd->uqhs", asked, keys[rows].float())
        hidden = (slots >= seen[:, :, None]) | (slots < first[:, :, None])
        scores.masked_fill_(hidden[:, :, None], -torch.inf)
        higher = torch.maximum(best, scores.amax(-1))
        base = higher.masked_fill(higher == -torch.inf, 0.0)
        weights, aged = (scores - base[..., None]).exp_(), (best - base).exp_()
        total = total * aged + weights.sum(-1)
        part = torch.einsum("uqhs,usd->uqhd", weights, values[rows].float())
        mixed, best = mixed * aged[..., None] + part, higher
    out = mixed / total.where(total > 0, 1.0)[..., None]
    lse = best + total.log()
    row = torch.arange(n, dtype=torch.int32, device=q.device)
    owner = torch.searchsorted(units.asks, row, right=True) - 1  # [N]
    where = (owner, row - begin[owner])
    return out[where].to(q.dtype), lse[where]


def plain_longest(slots: int, most: int) -> int:
    """What the plain kernel is told to be the longest of units that have up to so many slots.

    It loops that far, so `most` is much where sequences are short; few values, since each makes a
    round of another kind. Whole blocks, so that a unit's result does not depend on the value.
    """
    blocks = 1
    while blocks * BLOCK < min(slots, most):
        blocks *= 2
    return min(blocks * BLOCK, most)


def varlen_kernel(q: Tensor, keys: Tensor, values: Tensor, units: Units) -> tuple[Tensor, Tensor]:
    """Attention through torch's variable-length flash kernels.

    `seqused_k` is what a unit reads, so `starts` may lie anywhere. Where all queries of a unit see
    the same keys, its heads are rows like them: that spares reading the keys once for each head.
    """
    from torch.nn.attention.varlen import AuxRequest, varlen_attn_out

    n, h, d = q.shape
    asks, queries = units.asks, units.queries
    causal = units.causal and (queries > 1 or units.window is not None)
    if not causal and h > 1:
        q, asks, queries = q.reshape(n * h, 1, d), asks * h, queries * h
    left = -1 if units.window is None else units.window - 1
    out = torch.empty_like(q)
    _, lse = varlen_attn_out(
        out,
        q,
        keys[:, None],
        values[:, None],
        asks,
        units.starts,
        queries,
        max(units.longest, 1),
        return_aux=AuxRequest(lse=True),
        window_size=(left, 0 if causal else -1),
        enable_gqa=q.shape[1] > 1,
        seqused_k=units.lengths,
        num_splits=1,
    )
    # By head, then by row; the kernel says +inf where it has read nothing.
    lse = lse.masked_fill(lse.isposinf(), -torch.inf).T
    return out.view(n, h, d), lse.reshape(n, h)


@cache
def kernel_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """The faster of the kernels that work there, tried on a unit of each kind; says so once."""
    if device.type != "cuda":
        return plain_kernel
    reason = _refusal(device, dtype, head_dim)
    if reason is None:
        return varlen_kernel
    _LOG.warning("attention on %s takes the slow way: %s", device, reason)
    return plain_kernel


def _refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the variable-length kernel does not serve, or None."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the flash kernels know float16 and bfloat16, not {dtype}"
    if head_dim % 8 or head_dim > _LARGEST_HEAD:
        return f"the flash kernels know head sizes that 8 divides, up to 256, not {head_dim}"
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return "the flash kernels need compute capability 8.0"
    rows = torch.zeros(64, head_dim, dtype=dtype, device=device)
    starts, lengths = (torch.tensor(x, device=device) for x in ([0, 32], [0, 9]))
    try:
        for causal, h in ((False, 1), (True, 2)):
            units = Units.even(starts, lengths, 2, 32, causal=causal)
            varlen_kernel(rows[: 4 * h].view(4, h, head_dim), rows, rows, units)
        torch.cuda.synchronize(device)
    except (ImportError, AttributeError, TypeError, RuntimeError, NotImplementedError) as error:
        return f"torch {torch.__version__} has no such kernel ({error})"
    return None


def merge(outs: Tensor, lse: Tensor) -> Tensor:
    """One attention [N, h, d] of parts [P, N, h, d] over separate keys, and their lse [P, N, h].

    0 where no part has read anything.
    """
    best = lse.amax(0)
    weights = (lse - best.masked_fill(best == -torch.inf, 0.0)).exp_()
    total = weights.sum(0)
    mixed = (weights[..., None] * outs.float()).sum(0) / total.where(total > 0, 1.0)[..., None]
    return mixed.to(outs.dtype)


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """How a pass of ragged segments attends: prefill chunks, verification, decoding, mixed."""

    units: Units
    kv_heads: int
    fold: int

    @classmethod
    def of(cls, batch: RaggedBatch, kv_heads: int, group: int) -> PackedAttention:
        """For the segments of a batch, whose keys are to be in the arena by then.

        The queries of a unit are rows in a row, so queries stand by KV head first, then by token.
        Where each segment is one token, its `group` query heads of one KV head are rows as well.
        """
        segments, device = batch.segments, batch.positions.device
        total = len(batch.positions)
        heads = range(kv_heads)
        begin = [s.extent.start * kv_heads + h * s.extent.capacity for h in heads for s in segments]
        ends = [s.kv_length for _ in heads for s in segments]
        most = max(s.count for s in segments)
        fold = group if most == 1 else 1
        asks = [fold * (h * total + s.first) for h in heads for s in segments]
        starts, first, lengths = (
            torch.tensor(x, dtype=torch.int32, device=device)
            for x in ([*begin, begin[-1]], [*asks, fold * kv_heads * total], ends)
        )
        units = Units(starts, lengths, first, most * fold, max(ends), most > 1)
        return cls(units, kv_heads, fold)

    def attend(self, q: Tensor, layer: int, arena: KVArena) -> Tensor:
        """Attention output [T, H, d] for queries [T, H, d], not scaled."""
        tokens, heads, d = q.shape
        rows = q.view(tokens, self.kv_heads, -1, d).transpose(0, 1)  # [K, T, G, d]
        kernel = kernel_for(q.device, q.dtype, d)
        keys, values = arena.keys[layer], arena.values[layer]
        rows = rows.reshape(self.kv_heads * tokens * self.fold, -1, d)
        out, _ = kernel(rows, keys, values, self.units)
        return out.view(self.kv_heads, tokens, -1, d).transpose(0, 1).reshape(tokens, heads, d)
