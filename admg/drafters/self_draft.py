"""Self-speculation: the target's own weights draft, without the attention layers of each plan.

Shapes: B sequences that draft, K longest draft of the round, V vocabulary.

Drafting writes keys and values only for the layers it runs, into slots past the committed length;
verification overwrites them in every layer, so the draft needs no cache of its own.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from admg.batch import RaggedBatch, SubBatch
from admg.kv_arena import KVArena
from admg.model import LayerMembers, Transformer
from admg.noise import DRAFT
from admg.sampling import Sampler, confidence
from admg.sequence import Sequence


@dataclass(slots=True)
class Draft:
    """Draft tokens per sequence of the round (possibly none), where they came from, their laws.

    `laws` [i][j] [V] is the law that token j of sequence i was drawn from; only kept when
    verification by rejection asks for it.
    """

    tokens: list[list[int]]
    source: str = "none"
    laws: list[list[Tensor]] = field(default_factory=list)

    @classmethod
    def empty(cls, count: int) -> Draft:
        """No draft for any of `count` sequences: plain decoding."""
        return cls([[] for _ in range(count)], laws=[[] for _ in range(count)])


def layer_members(
    batch: RaggedBatch, dropped: Seq[frozenset[int]], num_layers: int
) -> LayerMembers:
    """Who takes part in each attention layer, when segment i leaves out the layers `dropped[i]`."""
    everyone = tuple(range(len(dropped)))
    known: dict[tuple[int, ...], SubBatch | None] = {everyone: None}
    members = []
    for layer in range(num_layers):
        kept = tuple(i for i in everyone if layer not in dropped[i])
        if kept not in known:
            known[kept] = batch.subset(kept)
        members.append(known[kept])
    return members


class SelfDrafter:
    """Drafts every sequence of a round by its own plan, one token per pass."""

    source = "admg"

    def __init__(
        self, model: Transformer, arena: KVArena, sampler: Sampler, keep_laws: bool
    ) -> None:
        self._model = model
        self._arena = arena
        self._sampler = sampler
        self._keep_laws = keep_laws

    def draft(self, sequences: list[Sequence]) -> Draft:
        """Draft tokens for each sequence, up to its own limit or its own exit."""
        draft = Draft.empty(len(sequences))
        draft.source = self.source
        active = [i for i, s in enumerate(sequences) if s.draft_limit > 0]
        while active:
            self._extend(draft, sequences, active)
            active = [i for i in active if not self._ended(draft.tokens[i], sequences[i])]
        return draft

    def _extend(self, draft: Draft, sequences: list[Sequence], active: list[int]) -> None:
        parts = []
        for i in active:
            s, drafted = sequences[i], draft.tokens[i]
            last = drafted[-1] if drafted else s.tokens[-1]
            parts.append(([last], len(s.tokens) - 1 + len(drafted), s.extent))
        batch = RaggedBatch.build(parts, self._model.device)
        plans = [sequences[i].plan for i in active]
        dropped = [frozenset(p.dropped if p is not None else ()) for p in plans]
        members = layer_members(batch, dropped, self._model.config.num_layers)
        hidden = self._model.forward(batch, self._arena, members=members)
        logits = self._model.logits(hidden)
        rows = [sequences[i].law_row(tuple(draft.tokens[i])) for i in active]
        if self._keep_laws:
            laws = self._sampler.laws(logits, rows)
            tokens = self._sampler.draw_from(laws, rows, DRAFT)
            for i, law in zip(active, laws, strict=True):
                draft.laws[i].append(law)
        else:
            tokens = self._sampler.draw(logits, rows)
        for i, token in zip(active, tokens.tolist(), strict=True):
            draft.tokens[i].append(token)
        self._note_confidence(logits, tokens, [sequences[i] for i in active])

    def _note_confidence(self, logits: Tensor, tokens: Tensor, sequences: list[Sequence]) -> None:
        if all(s.exit is None for s in sequences):
            return
        for s, p in zip(sequences, confidence(logits, tokens).tolist(), strict=True):
            if s.exit is not None:
                s.exit.last = p

    @staticmethod
    def _ended(drafted: list[int], sequence: Sequence) -> bool:
        # A drafted stop token ends the draft: whatever followed it would be thrown away.
        if len(drafted) >= sequence.draft_limit or drafted[-1] in sequence.stops:
            return True
        return sequence.exit is not None and sequence.exit.stops()
