"""What verified tokens teach about their sequences: fillings for their holes, and better plans.

Shapes: L layers, n verified tokens.

A prompt is verified by being given; after that, the inputs of a verification pass whose tokens
stayed are: the last committed token and the accepted drafts. Refused tokens teach nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

from admg.batch import RaggedBatch
from admg.config import DraftConfig
from admg.draft_rules import WindowRule
from admg.hole_filling import FillingObserver, OutputsObserver
from admg.kv_arena import KVArena
from admg.learned import Learned
from admg.model import AttentionObserver, Transformer
from admg.plan import DraftPlan
from admg.sequence import Sequence
from admg.similarity import CosinesObserver, SimilarityObserver
from admg.windows import SINKS, LimitedObserver, Near

# Tokens of a prompt on which limits are tried.
SAMPLES = 64


class PromptObservers:
    """Watch one prefill pass for what the draft configuration wants to know.

    Args:
        first_positions: per segment, the position of its first token.
        counts: per segment, its tokens.
        prompt_lengths: per segment, the length of the whole prompt.
        inside: the pass and its arena, to see heads from the inside.
    """

    def __init__(
        self,
        model: Transformer,
        draft: DraftConfig,
        first_positions: list[int],
        counts: list[int],
        prompt_lengths: list[int],
        inside: tuple[RaggedBatch, KVArena],
    ) -> None:
        self.heads: LimitedObserver | None = None
        self._owners: list[int] = []
        layers, device = model.config.num_layers, model.device
        self._no_units: Tensor | None = None
        if draft.windows is not None:
            at, self._owners = sampled(first_positions, counts, prompt_lengths, draft.windows)
            self.heads = _limited(*inside, at, self._owners, draft.windows, ranked=True)
            self._no_units = torch.zeros(layers, model.config.num_kv_heads, device=device)
        self._similarity: SimilarityObserver | None = None
        self._filling: FillingObserver | None = None
        if draft.self_drafts:
            how = (layers, draft.similarity, draft.similarity_decay, device)
            self._similarity = SimilarityObserver(first_positions, counts, prompt_lengths, *how)
            if draft.hole_filling:
                sizes = (layers, model.config.hidden_size)
                self._filling = FillingObserver(
                    first_positions, counts, *sizes, draft.hole_filling_decay, device
                )

    @property
    def all(self) -> list[AttentionObserver]:
        """What the forward pass shall call."""
        return [o for o in (self._similarity, self._filling) if o is not None]

    def onto(self, before: Learned, segment: int) -> Learned:
        """What is known of a segment's sequence after the pass, `before` being what was."""
        after = before
        if self._similarity is not None:
            sums, weight = self._similarity.sums[segment], float(self._similarity.weight[segment])
            if before.similarity_sums is not None:
                sums = before.similarity_sums + sums
            after = replace(
                after, similarity_sums=sums, similarity_weight=before.similarity_weight + weight
            )
        if self._filling is not None:
            after = replace(after, filling=self._filling.onto(before.filling, segment))
        if self.heads is not None:
            own = [i for i, owner in enumerate(self._owners) if owner == segment]
            after = after.with_units(self.heads.similarity[:, own])
        elif after.unit_sums is None:
            after = replace(after, unit_sums=self._no_units)
        return after


def sampled(
    first_positions: Seq[int], counts: Seq[int], prompt_lengths: Seq[int], rule: WindowRule
) -> tuple[list[int], list[int]]:
    """Tokens of a prefill pass on which limits are tried, and the segment of each.

    Spread evenly over each prompt's tokens that see more than a limited unit would, at most
    `SAMPLES` of them: the whole prompt tells more than its end (DESIGN §4.4), and costs too much.
    """
    tokens, owners = [], []
    begin = 0
    for segment, (position, count, length) in enumerate(
        zip(first_positions, counts, prompt_lengths, strict=True)
    ):
        first = SINKS + rule.window
        stride = max(1, -(-(length - first) // SAMPLES))
        for i in range(count):
            if position + i >= first and (length - 1 - position - i) % stride == 0:
                tokens.append(begin + i)
                owners.append(segment)
        begin += count
    return tokens, owners


def _limited(
    batch: RaggedBatch,
    arena: KVArena,
    tokens: Seq[int],
    owners: Seq[int],
    rule: WindowRule,
    *,
    ranked: bool,
    sets: Tensor | None = None,
) -> LimitedObserver | None:
    if not tokens:
        return None
    at = torch.tensor(tokens, device=batch.positions.device)
    extents = [batch.segments[owner].extent for owner in owners]
    where = (batch.positions[at], rule.window, arena.num_kv_heads, arena.keys.dtype)
    return LimitedObserver(arena, at, Near.of(extents, *where), sets, ranked)


class VerifiedObservers:
    """Watch one verification pass for what its sequences still want to know, and teach them.

    Args:
        sequences: one for each segment of the pass.
        draft: the engine's.
        batch, arena: the pass.
    """

    def __init__(
        self, sequences: list[Sequence], draft: DraftConfig, batch: RaggedBatch, arena: KVArena
    ) -> None:
        self._sequences = sequences
        self._draft = draft
        # Who is told to draft nothing learns nothing either, whatever sequences are waiting for.
        learned = [s.learned for s in sequences if draft.self_drafts]
        self._outputs = OutputsObserver() if any(k.filling is not None for k in learned) else None
        asked = any(k.similarity_sums is not None for k in learned)
        self._cosines = CosinesObserver() if asked else None
        self.heads: LimitedObserver | None = None
        self._first: dict[int, int] = {}
        if draft.windows is not None:
            self._watch_heads(draft.windows, batch, arena)

    def _watch_heads(self, rule: WindowRule, batch: RaggedBatch, arena: KVArena) -> None:
        ranked, filled = False, False
        tokens: list[int] = []
        owners: list[int] = []
        for i, (s, segment) in enumerate(zip(self._sequences, batch.segments, strict=True)):
            ranks = s.learned.unit_sums is not None
            fills = s.learned.left_out is not None and s.plan is not None and bool(s.plan.windowed)
            if ranks or fills:
                self._first[i] = len(tokens)
                tokens.extend(range(segment.first, segment.first + segment.count))
                owners.extend([i] * segment.count)
            ranked, filled = ranked or ranks, filled or fills
        sets = None
        if filled:
            layers, kv_heads = len(arena.keys), arena.num_kv_heads
            one = [_unit_set(s.plan, layers, kv_heads) for s in self._sequences]
            sets = torch.stack([one[owner] for owner in owners], dim=1).to(batch.positions.device)
        self.heads = _limited(batch, arena, tokens, owners, rule, ranked=ranked, sets=sets)

    @property
    def all(self) -> list[AttentionObserver]:
        """What the forward pass shall call."""
        return [o for o in (self._outputs, self._cosines) if o is not None]

    def teach(self, first: Seq[int], verified: Seq[int]) -> None:
        """Take the verified tokens into account.

        Args:
            first: per sequence, the index of its first token in the pass.
            verified: per sequence, how many of its tokens from there on are verified. 0, for an
                output that was not finite, ends the wish for another plan.
        """
        spans = list(zip(first, verified, strict=True))
        if self._outputs is not None:
            before = [s.learned.filling for s in self._sequences]
            after = self._outputs.onto(before, spans, self._draft.hole_filling_decay)
            for s, filling in zip(self._sequences, after, strict=True):
                s.learned = replace(s.learned, filling=filling)
        if self.heads is not None:
            for i, at in self._first.items():
                self._teach_heads(self._sequences[i], slice(at, at + verified[i]))
        if self._cosines is not None:
            cosines = self._cosines.cosines
            for s, (start, count) in zip(self._sequences, spans, strict=True):
                if s.learned.similarity_sums is not None:
                    self._remake(s, cosines[:, start : start + count])

    def _teach_heads(self, s: Sequence, verified: slice) -> None:
        if self.heads is None or verified.start == verified.stop:
            return
        if s.learned.unit_sums is not None:
            s.learned = s.learned.with_units(self.heads.similarity[:, verified], self._draft.aging)
        if s.learned.left_out is not None and s.plan is not None and s.plan.windowed:
            missing = self.heads.left_out[:, verified]
            left_out = s.learned.left_out.over(missing, self._draft.hole_filling_decay)
            s.learned = replace(s.learned, left_out=left_out)

    def _remake(self, s: Sequence, cosines: Tensor) -> None:
        """Add cosines [L, n] of verified tokens; make the plan anew once they are enough."""
        count, again = cosines.shape[1], self._draft.remake_every
        known = s.learned.with_similarities(cosines, self._draft.aging)
        known = replace(known, until_remade=known.until_remade - count)
        if count and known.until_remade > 0:
            s.learned = known
            return
        if count and s.plan is not None:
            s.similarity = known.similarity
            s.plan = DraftPlan.of(s.similarity, self._draft, known.units)
        if count and again is not None:
            # From one plan to the next few limits change: what they leave out stays about the same.
            s.learned = replace(known, until_remade=again)
            return
        left_out = None if known.left_out is None else known.left_out.anew()
        s.learned = replace(known, similarity_sums=None, unit_sums=None, left_out=left_out)


def _unit_set(plan: DraftPlan | None, num_layers: int, kv_heads: int) -> Tensor:
    """[L, K] bool: what the plan limits."""
    limited = torch.zeros(num_layers, kv_heads, dtype=torch.bool)
    for layer, heads in enumerate(plan.windowed if plan is not None else ()):
        limited[layer, list(heads)] = True
    return limited
