"""The ragged batch: what one pass through the model computes, flattened, no padding.

Shapes: T tokens of the pass over all sequences, B sequences, K KV heads.

A segment is the run of tokens that one sequence contributes. Lengths and positions are data that
the caller states; nothing here is ever derived from token ids (a pad or EOS id inside a prompt is
an ordinary token).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from admg.kv_arena import Extent, KVArena


class PassAttention(Protocol):
    """How the tokens of one pass attend."""

    def attend(self, q: Tensor, layer: int, arena: KVArena) -> Tensor:
        """Attention output [T, H, d] for queries [T, H, d], not scaled."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [first, first + count) of the pass: positions start.. of the sequence in `extent`."""

    first: int
    count: int
    start: int
    extent: Extent

    @property
    def kv_length(self) -> int:
        """Keys that the segment's last token sees, itself included."""
        return self.start + self.count


@dataclass(slots=True)
class RaggedBatch:
    """One pass: token ids [T] int64, positions [T] int64, and the segments in token order.

    `attention` is made once per pass, by the attention backend or by who knows better.
    """

    token_ids: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    attention: PassAttention | None = field(default=None, repr=False)
    _rows: Tensor | None = field(default=None, repr=False)

    @classmethod
    def build(
        cls,
        parts: Sequence[tuple[Sequence[int], int, Extent]],
        device: torch.device | str = "cpu",
    ) -> RaggedBatch:
        """From (token ids, position of the first one, extent) per sequence.

        Raises:
            ValueError: an empty part, or one that leaves its extent.
        """
        segments: list[Segment] = []
        ids: list[int] = []
        positions: list[int] = []
        for tokens, start, extent in parts:
            count = len(tokens)
            if not count or start + count > extent.capacity:
                raise ValueError(f"{count} tokens at {start} do not fit in {extent}")
            segments.append(Segment(len(ids), count, start, extent))
            ids.extend(tokens)
            positions.extend(range(start, start + count))
        return cls(
            torch.tensor(ids, dtype=torch.int64, device=device),
            torch.tensor(positions, dtype=torch.int64, device=device),
            tuple(segments),
        )

    def arena_rows(self, num_kv_heads: int) -> Tensor:
        """Rows [T*K] int64 of the arena that this pass's keys and values go to."""
        if self._rows is None:
            base = [s.extent.start * num_kv_heads for s in self.segments for _ in range(s.count)]
            capacity = [s.extent.capacity for s in self.segments for _ in range(s.count)]
            device = self.positions.device
            heads = torch.arange(num_kv_heads, device=device)
            starts = torch.tensor([base, capacity], dtype=torch.int64, device=device)
            first = starts[0] + self.positions
            self._rows = (first[:, None] + starts[1][:, None] * heads).reshape(-1)
        return self._rows

    def subset(self, members: Sequence[int]) -> SubBatch:
        """The pass restricted to the sequences at the given indices (ascending)."""
        segments: list[Segment] = []
        index: list[int] = []
        for m in members:
            s = self.segments[m]
            segments.append(Segment(len(index), s.count, s.start, s.extent))
            index.extend(range(s.first, s.first + s.count))
        where = torch.tensor(index, dtype=torch.int64, device=self.token_ids.device)
        batch = RaggedBatch(self.token_ids[where], self.positions[where], tuple(segments))
        return SubBatch(where, batch)


@dataclass(frozen=True, slots=True)
class SubBatch:
    """The sequences of a pass that take part in one sub-layer; `index` [T'] into the pass.

    `limited` [n] are those of T' that take part with limits: what fills the holes is added to them.
    """

    index: Tensor
    batch: RaggedBatch
    limited: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Masked:
    """All sequences compute a sub-layer, and whose result counts is data: `kept` [T] bool.

    Who is not kept attends to nothing there (its attention sees to that). `limited` [T] bool are
    those that take part with limits: what fills the holes is added to them.
    """

    kept: Tensor
    limited: Tensor | None = None

    def join(self, own: Tensor, instead: Tensor | None) -> Tensor:
        """The sub-layer's outputs [T, D]: `own` where kept, else `instead` (None: nothing)."""
        if instead is None:
            return torch.where(self.kept[:, None], own, 0.0)
        if self.limited is not None:
            own = own + torch.where(self.limited[:, None], instead, 0.0)
        return torch.where(self.kept[:, None], own, instead)


def mask_of(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: -inf where `hidden` (bool, any shape), else 0."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, -math.inf)
