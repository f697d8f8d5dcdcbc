"""The KV arena: one preallocated buffer for keys and one for values, cut into extents.

Shapes: L layers, K KV heads, S slots of the arena, C slots of an extent, d head size.

An extent is the run of slots that one sequence owns from admission to retirement; the token at
position i of the sequence lives in slot i of its extent, always. So rollback is `length = n`,
drafting writes slots past the committed length, verification overwrites them in every layer, and
nothing is ever moved or copied. Inside an extent each KV head's slots are contiguous:

    row of (head h, position i) in `keys[l]` [S*K, d]  =  extent.start * K + h * C + i

so the unit of attention, (sequence, KV head), is `C` consecutive rows, and neighbouring extents
of equal capacity form one strided batch of units.

This file knows nothing about tokens, masks or models.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.families import ModelConfig

SLOT_GRAIN = 32


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """`capacity` slots from slot `start`; both are multiples of the arena's grain."""

    start: int
    capacity: int

    @property
    def end(self) -> int:
        """The slot after the last one."""
        return self.start + self.capacity


def bytes_per_slot(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token position over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


class KVArena:
    """Keys and values of every running sequence, and the free list of their slots.

    `lane` is the capacity that extents are rounded up to while they fit in it: equal capacities
    make neighbours batchable (see the module's text). On CPU the memory of slots that were never
    written is never touched, so generous lanes cost address space, not memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device | str,
        lane: int = SLOT_GRAIN,
    ) -> None:
        self.num_kv_heads = config.num_kv_heads
        self.num_slots = num_slots // SLOT_GRAIN * SLOT_GRAIN
        self.lane = max(lane // SLOT_GRAIN * SLOT_GRAIN, SLOT_GRAIN)
        rows = self.num_slots * config.num_kv_heads
        shape = (config.num_layers, rows, config.head_dim)
        # Zeros, not empty: attention multiplies masked slots by 0, and 0 * NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # [L, S*K, d]
        self.values = torch.zeros(shape, dtype=dtype, device=device)  # [L, S*K, d]
        self._free = [Extent(0, self.num_slots)] if self.num_slots else []
        self._owned: set[Extent] = set()

    def fits(self, length: int) -> bool:
        """Whether a sequence of `length` tokens fits in the empty arena."""
        return _round_up(length, SLOT_GRAIN) <= self.num_slots

    def allocate(self, length: int) -> Extent | None:
        """An extent for a sequence of `length` tokens, first fit; None where none is free now."""
        exact = _round_up(length, SLOT_GRAIN)
        for capacity in sorted({max(exact, self.lane), exact}, reverse=True):
            for i, hole in enumerate(self._free):
                if hole.capacity >= capacity:
                    extent = Extent(hole.start, capacity)
                    rest = Extent(extent.end, hole.capacity - capacity)
                    self._free[i : i + 1] = [rest] if rest.capacity else []
                    self._owned.add(extent)
                    return extent
        return None

    def release(self, extent: Extent) -> None:
        """Give an extent's slots back and merge them with free neighbours.

        Raises:
            ValueError: the extent is not owned (given back twice, or never allocated).
        """
        if extent not in self._owned:
            raise ValueError(f"extent {extent} is not allocated")
        self._owned.remove(extent)
        insort(self._free, extent)
        merged: list[Extent] = []
        for hole in self._free:
            if merged and merged[-1].end == hole.start:
                merged[-1] = Extent(merged[-1].start, merged[-1].capacity + hole.capacity)
            else:
                merged.append(hole)
        self._free = merged

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [T, K, d] of one layer at `rows` [T*K] int64."""
        d = keys.shape[-1]
        self.keys[layer].index_copy_(0, rows, keys.reshape(-1, d))
        self.values[layer].index_copy_(0, rows, values.reshape(-1, d))

    def units(self, layer: int, extent: Extent, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of `count` neighbouring extents of equal capacity, first `length` slots.

        Returns:
            Two views [count*K, length, d]; unit i*K + h is KV head h of the i-th extent.
        """
        return _strided(self.keys[layer], extent, count, length, self.num_kv_heads), _strided(
            self.values[layer], extent, count, length, self.num_kv_heads
        )

    def check(self) -> None:
        """Raise AssertionError unless free and owned extents tile the arena exactly."""
        edge = 0
        for extent in sorted([*self._free, *self._owned]):
            assert extent.start == edge, f"slots {edge}..{extent.start} are lost or owned twice"
            edge = extent.end
        assert edge == self.num_slots, f"extents end at {edge}, the arena at {self.num_slots}"


def _strided(rows: Tensor, extent: Extent, count: int, length: int, num_kv_heads: int) -> Tensor:
    d = rows.shape[-1]
    return rows.as_strided(
        (count * num_kv_heads, length, d),
        (extent.capacity * d, d, 1),
        rows.storage_offset() + extent.start * num_kv_heads * d,
    )


def _round_up(n: int, grain: int) -> int:
    return -(-n // grain) * grain
