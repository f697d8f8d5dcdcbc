"""The passes of a round on the device, as batches whose every number is a tensor.

Shapes: B sequences, Q tokens of each in the pass, T = B*Q, L layers, K KV heads, G query heads of
one, d head size, U = B*K units.

A pass has the same shapes whatever its sequences do: who does not take part writes its keys and
values to the arena's spare slots and reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admg.attention_varlen import Units, kernel_for, merge
from admg.batch import RaggedBatch
from admg.kv_arena import KVArena
from admg.round_buffers import RoundBuffers
from admg.windows import SINKS


@dataclass(frozen=True, slots=True)
class EvenAttention:
    """How Q tokens each of B sequences attend: in `parts` over separate keys, merged.

    A part has the units of every layer, or one entry for all of them. Units are by sequence, then
    by KV head; with one token each their query heads are their rows, else their tokens are.
    """

    parts: tuple[tuple[Units, ...], ...]
    queries: int
    kv_heads: int

    def attend(self, q: Tensor, layer: int, arena: KVArena) -> Tensor:
        """Attention output [T, H, d] for queries [T, H, d], not scaled."""
        tokens, heads, d = q.shape
        n, group = tokens // self.queries, heads // self.kv_heads
        if self.queries == 1:
            rows = q.reshape(n * heads, 1, d)
        else:
            rows = q.view(n, self.queries, self.kv_heads, group, d).transpose(1, 2)
            rows = rows.reshape(n * self.kv_heads * self.queries, group, d)
        kernel = kernel_for(q.device, q.dtype, d)
        keys, values = arena.keys[layer], arena.values[layer]
        units = [part[layer if len(part) > 1 else 0] for part in self.parts]
        found = [kernel(rows, keys, values, one) for one in units]
        out = found[0][0]
        if len(found) > 1:
            out = merge(torch.stack([o for o, _ in found]), torch.stack([lse for _, lse in found]))
        if self.queries > 1:
            out = out.view(n, self.kv_heads, self.queries, group, d).transpose(1, 2)
        return out.reshape(tokens, heads, d)


@dataclass(frozen=True, slots=True)
class EvenPass:
    """Where a pass of Q tokens of each sequence stands: `tokens`, `positions` [B, Q] int64.

    `real` [B, Q] bool: the others are padding, and stand before the real ones. `longest` bounds
    what a sequence may have of slots.
    """

    longest: int
    rows: RoundBuffers
    tokens: Tensor
    positions: Tensor
    real: Tensor

    def batch(self, arena: KVArena, attention: EvenAttention) -> RaggedBatch:
        """What the forward takes."""
        assert arena.spare is not None
        k = arena.num_kv_heads
        heads = torch.arange(k, device=self.tokens.device)
        start, capacity = self.rows.number("start"), self.rows.number("capacity")
        own = start[:, None] * k + self.positions  # [B, Q]
        rows = own[..., None] + capacity[:, None, None] * heads  # [B, Q, K]
        spare = arena.spare.start * k + arena.spare.capacity * heads
        rows = torch.where(self.real[..., None], rows, spare)
        return RaggedBatch(
            self.tokens.reshape(-1),
            self.positions.reshape(-1),
            (),
            attention,
            rows.reshape(-1),
        )

    def reads(self, arena: KVArena, group: int) -> EvenAttention:
        """Attention of a verification pass: each token sees its sequence up to itself."""
        queries, k = self.tokens.shape[1], arena.num_kv_heads
        lengths = self._total.expand(-1, k).flatten()
        rows = queries if queries > 1 else group
        units = Units.even(self._starts(k), lengths, rows, self.longest, causal=queries > 1)
        return EvenAttention(((units,),), queries, k)

    def draft_reads(self, arena: KVArena, group: int, window: int | None) -> EvenAttention:
        """Attention of a draft pass, of one token each: dropped layers read nothing.

        With a `window` limited heads read their first keys and that many last ones.
        """
        limited, k = self.rows.limited, arena.num_kv_heads
        total = self._total.expand(-1, k)  # [B, K]
        seen = self.rows.kept[..., None] * total  # [L, B, K]
        starts = self._starts(k)

        def part(starts: Tensor, lengths: Tensor) -> tuple[Units, ...]:
            flat = lengths.flatten(1).int()
            one = Units.even(starts, flat[0], group, self.longest, causal=False)
            return tuple(replace(one, lengths=of_layer) for of_layer in flat)

        if window is None:
            return EvenAttention((part(starts, seen),), 1, k)
        skip = (total - window).clamp_min(SINKS)
        first = torch.where(limited, seen.clamp_max(SINKS), seen)
        last = torch.where(limited, (seen - skip).clamp_min(0), 0)
        parts = (part(starts, first), part(starts + skip.flatten(), last))
        return EvenAttention(parts, 1, k)

    def near_reads(self, arena: KVArena, group: int, window: int) -> EvenAttention:
        """What limited heads would read of a verification pass: first keys and last ones.

        A sequence that is shorter than the first keys reads the last ones alone.
        """
        queries, k = self.tokens.shape[1], arena.num_kv_heads
        total, starts = self._total.expand(-1, k), self._starts(k)
        whole = total - queries >= SINKS  # then every token sees all of the first keys
        first = torch.where(whole, SINKS, 0)
        skip = first if queries > 1 else first + (total - window - first).clamp_min(0)
        last, begin = (total - skip).flatten(), starts + skip.flatten()
        rows, most = (queries if queries > 1 else group), window + queries
        ends = Units.even(
            begin,
            last,
            rows,
            self.longest if queries > 1 else most,
            causal=queries > 1,
            window=window if queries > 1 else None,
        )
        sinks = Units.even(starts, first.flatten(), rows, SINKS, causal=False)
        return EvenAttention(((sinks,), (ends,)), queries, k)

    @property
    def _total(self) -> Tensor:
        """What each sequence's last token sees, [B, 1]; 0 for who does not take part."""
        return torch.where(self.real[:, -1:], self.positions[:, -1:] + 1, 0)

    def _starts(self, kv_heads: int) -> Tensor:
        """The first rows of the sequences' units, [U] int64."""
        heads = torch.arange(kv_heads, device=self.tokens.device)
        start, capacity = self.rows.number("start"), self.rows.number("capacity")
        return (start[:, None] * kv_heads + capacity[:, None] * heads).flatten()
