"""Laws and draws of whole batches whose parameters are tensors: nothing here asks the host.

Shapes: N rows, V vocabulary, S most stop tokens of a row.

The laws are those of `sampling`, row for row, and so is the noise. What a batch asks for at most
(`LawKind`) decides which operations run, so that greedy batches sort nothing. A row's draw does not
depend on it: one that cuts nothing is drawn from the whole vocabulary beside those that do, too.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from admg.config import SamplingParams
from admg.noise import exponential, position_keys, race

# No stop token.
NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class LawKind:
    """What the rows of a batch ask for.

    `draws`: "greedy" where all rows are; "whole" where those that draw do so from the whole
    vocabulary (with min-p or without); "cut" where they have top-k or top-p, "mixed" where some of
    them do. `bans`: some forbid their stop tokens for a while.
    """

    draws: Literal["greedy", "whole", "cut", "mixed"] = "greedy"
    bans: bool = False

    @classmethod
    def of(cls, params: Seq[SamplingParams], bans: bool, vocab_size: int) -> LawKind:
        """The least that serves all of them."""
        cut = {0 < p.top_k < vocab_size or p.top_p < 1 for p in params if not p.greedy}
        if len(cut) > 1:
            return cls("mixed", bans)
        return cls(("cut" if cut.pop() else "whole") if cut else "greedy", bans)


@dataclass(frozen=True, slots=True)
class RowLaws:
    """Parameters of N rows, and the names of their noise.

    `base`, `position` [N] int64 as in `LawRow`; `temperature` [N] fp32, 0 for greedy rows; `top_k`
    [N] int64, V where it is off; `top_p`, `min_p` [N] fp32; `stops` [N, S] int64, `NO_TOKEN` where
    a row has fewer; `min_tokens` [N] int64.
    """

    base: Tensor
    position: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    stops: Tensor
    min_tokens: Tensor

    def at(self, position: Tensor) -> RowLaws:
        """The laws of the same N sequences at several positions [N, Q] each: N*Q rows."""
        names = ("base", "temperature", "top_k", "top_p", "min_p", "stops", "min_tokens")
        rows = {name: _each(getattr(self, name), position.shape[1]) for name in names}
        return RowLaws(position=position.reshape(-1), **rows)

    def draw(self, logits: Tensor, kind: LawKind, hashes: Tensor) -> Tensor:
        """Tokens [N] int64, one exact draw per row of logits [N, V] fp32.

        `hashes` [V] are `noise.token_hash` of all tokens.
        """
        if kind.bans:
            logits = self._banned(logits)
        likeliest = logits.argmax(dim=-1)
        if kind.draws == "greedy":
            return likeliest
        greedy = self.temperature == 0
        scaled = logits / self.temperature.where(~greedy, 1.0)[:, None]
        keys = position_keys(self.base, self.position)
        if kind.draws == "cut":
            drawn = self._draw_cut(scaled, keys, hashes)
        else:
            drawn = self._draw_whole(scaled, keys, hashes)
        if kind.draws == "mixed":
            cuts = (self.top_k < logits.shape[-1]) | (self.top_p < 1)
            drawn = torch.where(cuts, self._draw_cut(scaled, keys, hashes), drawn)
        return torch.where(greedy, likeliest, drawn)

    def _banned(self, logits: Tensor) -> Tensor:
        banned = (self.position < self.min_tokens)[:, None] & (self.stops != NO_TOKEN)
        ceiling = torch.full_like(self.stops, torch.inf, dtype=logits.dtype)
        ceiling.masked_fill_(banned, -torch.inf)
        return logits.scatter_reduce(1, self.stops.clamp_min(0), ceiling, reduce="amin")

    def _draw_whole(self, scaled: Tensor, keys: Tensor, hashes: Tensor) -> Tensor:
        probabilities = scaled.softmax(dim=-1)
        floor = self.min_p[:, None] * probabilities.amax(dim=-1, keepdim=True)
        probabilities = torch.where(probabilities >= floor, probabilities, 0.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        return race(probabilities, exponential(keys, hashes))

    def _draw_cut(self, scaled: Tensor, keys: Tensor, hashes: Tensor) -> Tensor:
        # Stable, as `sampling.likeliest` is: of equals the first tokens are kept.
        values, tokens = scaled.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(values.shape[-1], device=values.device)
        # With top-k the law is renormalised over what it leaves, before top-p looks at it.
        values = torch.where(rank < self.top_k[:, None], values, -torch.inf)
        probabilities = values.softmax(dim=-1)
        mass = probabilities.cumsum(dim=-1)
        top_p = self.top_p[:, None]
        # At top_p 1 rounding would cut the tail off: there nothing is cut.
        keep = (mass - probabilities < top_p) | (top_p == 1)
        keep &= probabilities >= self.min_p[:, None] * probabilities[:, :1]
        probabilities = torch.where(keep, probabilities, 0.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        column = race(probabilities, exponential(keys, hashes[tokens]))
        return tokens.gather(1, column[:, None])[:, 0]


def _each(values: Tensor, times: int) -> Tensor:
    """Every row of [N, ...] so many times: [N * times, ...]."""
    return values[:, None].expand(-1, times, *values.shape[1:]).flatten(0, 1)
