"""The KV arena: one preallocated buffer for keys and one for values, cut into extents.

Shapes: L layers, K KV heads, S slots of the arena, C slots of an extent, d head size.

An extent is the run of slots that one sequence owns from admission to retirement; the token at
position i of the sequence lives in slot i of its extent, always. So rollback is `length = n`,
drafting writes slots past the committed length, verification overwrites them in every layer, and
nothing is ever moved or copied. Inside an extent each KV head's slots are contiguous:

    row of (head h, position i) in `keys[l]` [S*K, d]  =  extent.start * K + h * C + i

so the unit of attention, (sequence, KV head), is `C` consecutive rows, and neighbouring extents
of equal capacity form one contiguous batch of units. Batched matmuls want just that (on CPU a bf16
`bmm` copies its operands otherwise), so extents are made equal where the waste is bounded.

This file knows nothing about tokens, masks or models.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.families import ModelConfig

# Also a page of attention: extents, and the slots of a KV head in them, are whole pages.
SLOT_GRAIN = 64
# An extent may be this much larger than needed, if that makes it equal to others in use.
STRETCH = 1.25


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """`capacity` slots from slot `start`; both are multiples of the arena's grain."""

    start: int
    capacity: int

    @property
    def end(self) -> int:
        """The slot after the last one."""
        return self.start + self.capacity


def first_rows(extents: Sequence[Extent], kv_heads: int, device: torch.device | str) -> Tensor:
    """Where the slots of each unit of these extents begin: rows [n, K] int64 of the arena."""
    places = torch.tensor(
        [[e.start * kv_heads, e.capacity] for e in extents], dtype=torch.int64, device=device
    )
    return places[:, :1] + torch.arange(kv_heads, device=device) * places[:, 1:]


def bytes_per_slot(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token position over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


class KVArena:
    """Keys and values of every running sequence, and the free list of their slots."""

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        spare: bool = False,
    ) -> None:
        self.num_kv_heads = config.num_kv_heads
        self.num_slots = num_slots // SLOT_GRAIN * SLOT_GRAIN
        # Beyond what can be allocated: where a pass writes whose keys and values are for nobody.
        self.spare = Extent(self.num_slots, SLOT_GRAIN) if spare else None
        rows = (self.num_slots + SLOT_GRAIN * spare) * config.num_kv_heads
        shape = (config.num_layers, rows, config.head_dim)
        # Zeros, not empty: attention multiplies masked slots by 0, and 0 * NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # [L, S*K, d]
        self.values = torch.zeros(shape, dtype=dtype, device=device)  # [L, S*K, d]
        self._free = [Extent(0, self.num_slots)] if self.num_slots else []
        self._owned: set[Extent] = set()
        self.num_used = 0

    def fits(self, length: int) -> bool:
        """Whether a sequence of `length` tokens fits in the empty arena."""
        return _round_up(length, SLOT_GRAIN) <= self.num_slots

    def allocate(self, length: int) -> Extent | None:
        """An extent for a sequence of `length` tokens; None where none is free now."""
        exact = _round_up(length, SLOT_GRAIN)
        for capacity in [*self._equal_capacities(exact), exact]:
            # A hole of just this capacity first: it keeps a run of equal extents whole.
            holes = sorted(self._free, key=lambda h: (h.capacity != capacity, h.start))
            hole = next((h for h in holes if h.capacity >= capacity), None)
            if hole is not None:
                return self._take(hole, capacity)
        return None

    def _equal_capacities(self, exact: int) -> list[int]:
        """Capacities in use that `exact` slots can be stretched to, smallest first."""
        return sorted({e.capacity for e in self._owned if exact <= e.capacity <= STRETCH * exact})

    def _take(self, hole: Extent, capacity: int) -> Extent:
        extent = Extent(hole.start, capacity)
        self._free.remove(hole)
        if hole.capacity > capacity:
            insort(self._free, Extent(extent.end, hole.capacity - capacity))
        self._owned.add(extent)
        self.num_used += capacity
        return extent

    def release(self, extent: Extent) -> None:
        """Give an extent's slots back and merge them with free neighbours.

        Raises:
            ValueError: the extent is not owned (given back twice, or never allocated).
        """
        if extent not in self._owned:
            raise ValueError(f"extent {extent} is not allocated")
        self._owned.remove(extent)
        self.num_used -= extent.capacity
        insort(self._free, extent)
        merged: list[Extent] = []
        for hole in self._free:
            if merged and merged[-1].end == hole.start:
                merged[-1] = Extent(merged[-1].start, merged[-1].capacity + hole.capacity)
            else:
                merged.append(hole)
        self._free = merged

    def clear(self, extent: Extent, first: int = 0) -> None:
        """Zero an extent from position `first` on: masks do not stop NaN, so it must not stay."""
        for heads in self._heads(extent):
            heads[:, :, first:].zero_()

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [T, K, d] of one layer at `rows` [T*K] int64."""
        d = keys.shape[-1]
        self.keys[layer].index_copy_(0, rows, keys.reshape(-1, d))
        self.values[layer].index_copy_(0, rows, values.reshape(-1, d))

    def copy(self, extent: Extent, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [L, K, count, d] of an extent's first positions, in own memory."""
        keys, values = self._heads(extent)
        return keys[:, :, :count].clone(), values[:, :, :count].clone()

    def paste(self, extent: Extent, keys: Tensor, values: Tensor) -> None:
        """Put what `copy` took at the beginning of an extent."""
        for own, given in zip(self._heads(extent), (keys, values), strict=True):
            own[:, :, : given.shape[2]] = given

    def _heads(self, extent: Extent) -> tuple[Tensor, Tensor]:
        """Views [L, K, C, d] of an extent's keys and values."""
        rows = slice(extent.start * self.num_kv_heads, extent.end * self.num_kv_heads)
        shape = (len(self.keys), self.num_kv_heads, extent.capacity, -1)
        return self.keys[:, rows].view(shape), self.values[:, rows].view(shape)

    def units(self, layer: int, first: Extent, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of `count` neighbouring extents of equal capacity C.

        Returns:
            Two contiguous views [count*K, C, d]; unit i*K + h is KV head h of the i-th extent.
        """
        k, d = self.num_kv_heads, self.keys.shape[-1]
        rows = slice(first.start * k, (first.start + count * first.capacity) * k)
        shape = (count * k, first.capacity, d)
        return self.keys[layer, rows].view(shape), self.values[layer, rows].view(shape)

    def pages(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the slots [first, last), whole extents, in pages of P = `SLOT_GRAIN`.

        Returns:
            Two contiguous views [(last - first)*K/P, P, d]; an extent's pages are its first KV
            head's, in the order of positions, then its second's, and so on.
        """
        rows = slice(first * self.num_kv_heads, last * self.num_kv_heads)
        shape = (-1, SLOT_GRAIN, self.keys.shape[-1])
        return self.keys[layer, rows].view(shape), self.values[layer, rows].view(shape)

    def gather(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Copies [U, S, d] of the keys and values at `rows` [U, S] int64 of one layer."""
        shape = (*rows.shape, self.keys.shape[-1])
        flat = rows.reshape(-1)
        keys, values = self.keys[layer], self.values[layer]
        return keys.index_select(0, flat).view(shape), values.index_select(0, flat).view(shape)

    def check(self) -> None:
        """Raise AssertionError unless free and owned extents tile the arena exactly."""
        edge = 0
        for extent in sorted([*self._free, *self._owned]):
            assert extent.start == edge, f"slots {edge}..{extent.start} are lost or owned twice"
            edge = extent.end
        assert edge == self.num_slots, f"extents end at {edge}, the arena at {self.num_slots}"
        owned = sum(extent.capacity for extent in self._owned)
        assert owned == self.num_used, f"{owned} slots are owned, {self.num_used} counted"


def _round_up(n: int, grain: int) -> int:
    return -(-n // grain) * grain
