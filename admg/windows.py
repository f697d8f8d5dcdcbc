"""Attention of limited units: (sequence, KV head) pairs that see the first keys and the last ones.

Shapes: n tokens, H query heads, K KV heads, G = H/K query heads of one KV head, d head size,
S = `SINKS` + window slots that a limited unit sees, L layers, D hidden size.

Our extension of ADMG (DESIGN §4.4): instead of leaving a layer's attention out, some of its KV
heads read only the first 4 keys, which attention leans on whatever the text (StreamingLLM,
2309.17453), and the last W. Which ones is decided by the same cosine measure, applied to the change
that the limit makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from admg.batch import mask_of
from admg.kv_arena import Extent, KVArena, first_rows

SINKS = 4


class HeadsObserver(Protocol):
    """Sees each attention sub-layer from the inside."""

    def see_heads(
        self,
        layer: int,
        x: Tensor,
        added: Tensor,
        queries: Tensor,
        mixed: Tensor,
        project: Callable[[Tensor], Tensor],
    ) -> None:
        """Take note of one layer.

        Args:
            layer: its number.
            x: [T, D] its input.
            added: [T, D] what it adds to the residual stream.
            queries: [T, H, d] rotated, not scaled.
            mixed: [T, H, d] the values that each head has mixed.
            project: the output projection, [T, H*d] to [T, D].
        """


@dataclass(frozen=True, slots=True)
class Near:
    """Where the keys of limited units are: `rows` [n, K, S] of the arena, `mask` [n, S]."""

    rows: Tensor
    mask: Tensor

    @classmethod
    def of(
        cls,
        extents: list[Extent],
        positions: Tensor,
        window: int,
        kv_heads: int,
        dtype: torch.dtype,
    ) -> Near:
        """For tokens at `positions` [n] of the sequences in `extents`."""
        device = positions.device
        first = torch.arange(SINKS, device=device).expand(len(positions), SINKS)
        last = positions[:, None] + torch.arange(1 - window, 1, device=device)
        # A key that is among the first as well as among the last is seen once.
        hidden = torch.cat([first > positions[:, None], last < SINKS], dim=1)
        slots = torch.cat([first, last.clamp_min(0)], dim=1)  # [n, S]
        rows = first_rows(extents, kv_heads, device)[:, :, None] + slots[:, None]
        return cls(rows, mask_of(hidden, dtype))


def attend_near(queries: Tensor, layer: int, near: Near, arena: KVArena) -> Tensor:
    """What each head would mix were it limited: [n, H, d] for queries [n, H, d], not scaled."""
    n, heads, d = queries.shape
    kv_heads = near.rows.shape[1]
    folded = (queries * (1.0 / math.sqrt(d))).view(n * kv_heads, heads // kv_heads, d)
    mask = near.mask.repeat_interleave(kv_heads, dim=0)[:, None]
    return attend_rows(folded, layer, near.rows.flatten(0, 1), mask, arena).view(n, heads, d)


def attend_rows(folded: Tensor, layer: int, rows: Tensor, mask: Tensor, arena: KVArena) -> Tensor:
    """Attention [U, G, d] of queries [U, G, d], scaled, over the arena's `rows` [U, S].

    `mask` [U, 1, S] is added to the scores.
    """
    keys, values = arena.gather(layer, rows)
    scores = torch.bmm(folded, keys.transpose(1, 2)).add_(mask)
    return torch.bmm(torch.softmax(scores, dim=-1), values)


class LimitedObserver:
    """What limits would change, at some tokens of a pass.

    `similarity` [L, n, K] is, for each unit, the cosine of the sub-layer's output with all of its
    heads and with this one limited, both in the residual stream. With `sets`, `left_out` [L, n, D]
    is what the limits of a token's own plan take away, all of them together.

    Args:
        arena: where the keys and values are.
        tokens: [n] int64 indices into the pass.
        near: of these tokens.
        sets: [L, n, K] bool, the units that each token's plan limits; None without plans.
        ranked: whether similarities are asked for.
    """

    def __init__(
        self, arena: KVArena, tokens: Tensor, near: Near, sets: Tensor | None, ranked: bool
    ) -> None:
        self._arena, self._tokens, self._near = arena, tokens, near
        self._sets, self._ranked = sets, ranked
        self._similarity: list[Tensor] = []
        self._left_out: list[Tensor] = []

    @cached_property
    def similarity(self) -> Tensor:
        """[L, n, K] fp32; to be asked for after the pass."""
        return torch.stack(self._similarity)

    @cached_property
    def left_out(self) -> Tensor:
        """[L, n, D] fp32; to be asked for after the pass."""
        return torch.stack(self._left_out)

    def see_heads(
        self,
        layer: int,
        x: Tensor,
        added: Tensor,
        queries: Tensor,
        mixed: Tensor,
        project: Callable[[Tensor], Tensor],
    ) -> None:
        """Compare one layer's heads with what they would be, limited."""
        at = self._tokens
        x, added, mixed = x[at], added[at], mixed[at]
        n, heads, d = mixed.shape
        kv_heads = self._near.rows.shape[1]
        limited = attend_near(queries[at], layer, self._near, self._arena)
        by_unit = (n, kv_heads, heads // kv_heads, d)
        whole, near = mixed.view(by_unit), limited.view(by_unit)
        if self._ranked:
            own = torch.eye(kv_heads, dtype=torch.bool, device=x.device)
            each = torch.where(own[:, None, :, None, None], near, whole)  # [K, n, K, G, d]
            changed = project(each.reshape(kv_heads * n, heads * d)).view(kv_heads, n, -1)
            one, other = (x + added).float(), (x + changed).float()
            self._similarity.append(torch.cosine_similarity(one, other, dim=-1).T)  # [n, K]
        if self._sets is not None:
            which = self._sets[layer][:, :, None, None]
            changed = project(torch.where(which, near, whole).reshape(n, heads * d))
            self._left_out.append((added - changed).float())
