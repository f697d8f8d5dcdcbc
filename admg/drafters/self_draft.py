"""Self-speculation: the target's own weights draft, without the sub-layers that each plan drops.

Shapes: B sequences that draft, K longest draft of the round, V vocabulary.

Drafting writes keys and values only for the layers it runs, into slots past the committed length;
verification overwrites them in every layer, so the draft needs no cache of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from admg.attention_units import UnitReader
from admg.batch import RaggedBatch, SubBatch
from admg.drafters.draft import Draft
from admg.hole_filling import RunningMean, fills
from admg.kv_arena import KVArena
from admg.model import Members, Transformer
from admg.noise import DRAFT
from admg.plan import DraftPlan
from admg.sampling import Sampler, confidence
from admg.sequence import Sequence
from admg.windows import SINKS


def members_of(
    batch: RaggedBatch,
    plans: Seq[DraftPlan | None],
    num_layers: int,
    reader: UnitReader | None = None,
) -> Members:
    """Who takes part in each sub-layer, when segment i drafts by `plans[i]` (None: whole).

    `reader` is needed where a plan limits KV heads.
    """
    everyone = tuple(range(len(plans)))
    known: dict[tuple[int, ...], SubBatch | None] = {everyone: None}
    whole: SubBatch | None = None

    def by_layer(dropped: Seq[frozenset[int]]) -> list[tuple[tuple[int, ...], SubBatch | None]]:
        members = []
        for layer in range(num_layers):
            kept = tuple(i for i in everyone if layer not in dropped[i])
            if kept not in known:
                known[kept] = batch.subset(kept)
            members.append((kept, known[kept]))
        return members

    attention: list[SubBatch | None] = []
    for layer, (kept, part) in enumerate(
        by_layer([frozenset(p.dropped if p is not None else ()) for p in plans])
    ):
        heads = [p.windowed[layer] if p is not None and p.windowed else () for p in plans]
        if reader is not None and any(heads[i] for i in kept):
            if part is None:
                part = whole = whole or batch.subset(everyone)
            part.batch.arena_rows(reader.kv_heads)  # once for all layers of these sequences
            part = _limited(part, reader, list(kept), [heads[i] for i in kept])
        attention.append(part)
    mlps = by_layer([frozenset(p.dropped_mlps if p is not None else ()) for p in plans])
    return Members(attention, [part for _, part in mlps])


def _limited(
    part: SubBatch, reader: UnitReader, kept: list[int], heads: list[tuple[int, ...]]
) -> SubBatch:
    """The same sequences, some of them with limits."""
    batch = copy.copy(part.batch)
    batch.attention = reader.layer(kept, heads)
    limited = torch.tensor([j for j, h in enumerate(heads) if h], device=part.index.device)
    return SubBatch(part.index, batch, limited)


class SelfDrafter:
    """Drafts every sequence of a round by its own plan, one token per pass."""

    source = "admg"

    def __init__(
        self,
        model: Transformer,
        arena: KVArena,
        sampler: Sampler,
        keep_laws: bool,
        window: int = 0,
    ) -> None:
        self._window = window
        self.model = model
        self._arena = arena
        self._sampler = sampler
        self._keep_laws = keep_laws

    def draft(self, sequences: list[Sequence], limits: list[int], draft: Draft) -> None:
        """Append draft tokens for each sequence, up to its limit or its own exit."""
        active = [i for i, limit in enumerate(limits) if limit > 0]
        if not active:
            return
        fill = fills([_filling(s) for s in sequences], self.model.dtype)
        while active:
            self._extend(draft, sequences, active, fill)
            active = [i for i in active if not self._ended(draft, i, limits[i], sequences[i])]

    def kv_saved(self, s: Sequence) -> float | None:
        """The share of a sequence's keys and values that a pass does not read; None if none was."""
        if s.plan is None or not s.plan.draft_tokens or self.source not in s.tally.drafted:
            return None
        sizes = (self.model.config.num_layers, self._arena.num_kv_heads)
        return s.plan.kv_saved(*sizes, len(s.tokens), SINKS + self._window)

    def _extend(
        self, draft: Draft, sequences: list[Sequence], active: list[int], fill: Tensor | None
    ) -> None:
        parts = []
        for i in active:
            s, drafted = sequences[i], draft.tokens[i]
            last = drafted[-1] if drafted else s.tokens[-1]
            parts.append(([last], len(s.tokens) - 1 + len(drafted), s.extent))
        batch = RaggedBatch.build(parts, self.model.device)
        plans = [sequences[i].plan for i in active]
        layers, kv_heads = self.model.config.num_layers, self._arena.num_kv_heads
        reader = None
        if any(p is not None and p.windowed for p in plans):
            reader = UnitReader(batch, self._window, kv_heads, self.model.dtype)
        members = members_of(batch, plans, layers, reader)
        if fill is not None and len(active) < len(sequences):
            fill = fill[:, active]
        hidden = self.model.forward(batch, self._arena, members=members, fill=fill)
        logits = self.model.logits(hidden)
        rows = [sequences[i].law_row(tuple(draft.tokens[i])) for i in active]
        if self._keep_laws:
            laws = self._sampler.laws(logits, rows)
            tokens = self._sampler.draw_from(laws, rows, DRAFT)
            for i, law in zip(active, laws, strict=True):
                draft.laws[i].append(law)
        else:
            tokens = self._sampler.draw(logits, rows)
        for i, token in zip(active, tokens.tolist(), strict=True):
            draft.add(i, [token], self.source)
        self._note_confidence(logits, tokens, [sequences[i] for i in active])

    def _note_confidence(self, logits: Tensor, tokens: Tensor, sequences: list[Sequence]) -> None:
        if all(s.exit is None for s in sequences):
            return
        for s, p in zip(sequences, confidence(logits, tokens).tolist(), strict=True):
            if s.exit is not None:
                s.exit.last = p

    @staticmethod
    def _ended(draft: Draft, i: int, limit: int, sequence: Sequence) -> bool:
        # A drafted stop token ends the draft: whatever followed it would be thrown away.
        if draft.drafted(i, SelfDrafter.source) >= limit or draft.tokens[i][-1] in sequence.stops:
            return True
        return sequence.exit is not None and sequence.exit.stops()


def _filling(s: Sequence) -> RunningMean | None:
    """What goes into the holes of a sequence's plan: the dropped layers', and the limited ones'."""
    filling, left_out = s.learned.filling, s.learned.left_out
    if filling is None or left_out is None or s.plan is None or not s.plan.windowed:
        return filling
    limited = torch.tensor([bool(heads) for heads in s.plan.windowed], device=filling.sums.device)
    return RunningMean(torch.where(limited[:, None], left_out.mean, filling.mean), 1.0)
