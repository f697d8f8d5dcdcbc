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

from admg.attention_varlen import Units, kernel_for, merge, varlen_kernel
from admg.batch import RaggedBatch
from admg.kv_arena import KVArena
from admg.round_buffers import RoundBuffers
from admg.windows import SINKS


@dataclass(frozen=True, slots=True)
class EvenAttention:
    """How Q tokens each of B sequences attend: in parts over separate keys, merged.

    Each of the `calls` has the units of every layer, or one entry for all of them: those of one
    part or of several, one after the other. The units of a part are by sequence, then by KV head;
    with one token each their query heads are their rows, else their tokens are.
    """

    calls: tuple[tuple[Units, ...], ...]
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
        outs, sums = [], []
        for call in self.calls:
            units = call[layer if len(call) > 1 else 0]
            parts = len(units.lengths) // (n * self.kv_heads)
            asked = rows.repeat(parts, 1, 1)
            out, lse = kernel(asked, arena.keys[layer], arena.values[layer], units)
            outs.append(out.view(parts, *rows.shape))
            sums.append(lse.reshape(parts, *rows.shape[:2]))
        together = torch.cat(outs)
        out = together[0] if len(together) == 1 else merge(together, torch.cat(sums))
        if self.queries > 1:
            out = out.view(n, self.kv_heads, self.queries, group, d).transpose(1, 2)
        return out.reshape(tokens, heads, d)


@dataclass(frozen=True, slots=True)
class EvenPass:
    """Where a pass of Q tokens of each sequence stands: `tokens`, `positions` [B, Q] int64.

    `real` [B, Q] bool: the others are padding, and stand before the real ones. `longest` bounds
    what a sequence may have of slots. Where units are few, each is read in `parts`.
    """

    longest: int
    rows: RoundBuffers
    tokens: Tensor
    positions: Tensor
    real: Tensor
    parts: int = 1

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
        """Attention of a verification pass: each token sees its sequence up to itself.

        In parts, what was committed before the pass is read by all of its tokens alike.
        """
        queries, k = self.tokens.shape[1], arena.num_kv_heads
        total, starts = self._total.expand(-1, k), self._starts(k)
        if queries == 1:
            return EvenAttention(((self._even(self._split(starts, total, total), group),),), 1, k)
        if self.parts == 1:
            units = Units.even(starts, total.flatten(), queries, self.longest, causal=True)
            return EvenAttention(((units,),), queries, k)
        before = torch.minimum(self.rows.number("length")[:, None] - 1, total).clamp_min(0)
        past = self._even(self._split(starts, before, before), queries)
        own = (starts + before.flatten(), (total - before).flatten())
        block = Units.even(*own, queries, queries, causal=True)
        return EvenAttention(((past,), (block,)), queries, k)

    def draft_reads(self, arena: KVArena, group: int, window: int | None) -> EvenAttention:
        """Attention of a draft pass, of one token each: dropped layers read nothing.

        With a `window` limited heads read their first keys and that many last ones.
        """
        limited, k = self.rows.limited, arena.num_kv_heads
        total, starts = self._total.expand(-1, k), self._starts(k)  # [B, K], [U]
        seen = self.rows.kept[..., None] * total  # [L, B, K]
        if window is None:
            begin, lengths = self._split(starts, total, seen)
        else:
            first = torch.where(limited, seen.clamp_max(SINKS), seen)
            begin, lengths = self._split(starts, total, first)
            skip = (total - window).clamp_min(SINKS)
            last = torch.where(limited, (seen - skip).clamp_min(0), 0)
            begin = torch.cat([begin, starts + skip.flatten()])
            lengths = torch.cat([lengths, last.flatten(-2)], dim=-1)
        one = self._even((begin, lengths[0]), group)
        units = tuple(replace(one, lengths=of_layer) for of_layer in lengths.int())
        return EvenAttention((units,), 1, k)

    def _split(self, starts: Tensor, total: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Units in parts of equal size: starts [parts*U], lengths [..., parts*U].

        Args:
            starts: [U] rows of the arena.
            total: [B, K] what decides how large a part is: at least what is read.
            seen: [..., B, K] what is read.
        """
        size = (total + self.parts - 1) // self.parts
        begins = [(p * size) for p in range(self.parts)]
        first = torch.cat([starts + begin.flatten() for begin in begins])
        lengths = [torch.minimum((seen - begin).clamp_min(0), size) for begin in begins]
        return first, torch.cat([x.flatten(-2) for x in lengths], dim=-1)

    def _even(self, ranges: tuple[Tensor, Tensor], queries: int) -> Units:
        """Units of equally many queries, each of which sees all that its unit reads."""
        return Units.even(*ranges, queries, self.longest, causal=False)

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


def wanted_units(device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
    """How many units keep a device busy; 0 where it makes no difference.

    The flash kernel gives a unit's keys to one multiprocessor, so a few long ones would leave most
    of the device idle. In fp32, the mode for exactness, another kernel runs.
    """
    if kernel_for(device, dtype, head_dim) is not varlen_kernel:
        return 0
    return 2 * int(torch.cuda.get_device_properties(device).multi_processor_count)
