"""What verified tokens teach about their sequences: fillings for their holes, and better plans.

Shapes: L layers, n verified tokens.

A prompt is verified by being given; after that, the inputs of a verification pass whose tokens
stayed are: the last committed token and the accepted drafts. Refused tokens teach nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

from torch import Tensor

from admg.config import DraftConfig
from admg.hole_filling import FillingObserver, OutputsObserver
from admg.learned import Learned
from admg.model import AttentionObserver, Transformer
from admg.plan import choose_dropped
from admg.sequence import Sequence
from admg.similarity import CosinesObserver, SimilarityObserver


class PromptObservers:
    """Watch one prefill pass for what the draft configuration wants to know.

    Args:
        first_positions: per segment, the position of its first token.
        counts: per segment, its tokens.
        prompt_lengths: per segment, the length of the whole prompt.
    """

    def __init__(
        self,
        model: Transformer,
        draft: DraftConfig,
        first_positions: list[int],
        counts: list[int],
        prompt_lengths: list[int],
    ) -> None:
        layers, device = model.config.num_layers, model.device
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
        return after


class VerifiedObservers:
    """Watch one verification pass for what its sequences still want to know, and teach them."""

    def __init__(self, sequences: list[Sequence], draft: DraftConfig) -> None:
        self._sequences = sequences
        self._draft = draft
        learned = [s.learned for s in sequences]
        self._outputs = OutputsObserver() if any(k.filling is not None for k in learned) else None
        asked = any(k.similarity_sums is not None for k in learned)
        self._cosines = CosinesObserver() if asked else None

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
        if self._cosines is not None:
            cosines = self._cosines.cosines
            for s, (start, count) in zip(self._sequences, spans, strict=True):
                if s.learned.similarity_sums is not None:
                    self._remake(s, cosines[:, start : start + count])

    def _remake(self, s: Sequence, cosines: Tensor) -> None:
        """Add cosines [L, n] of verified tokens; make the plan anew once they are enough."""
        count, wanted = cosines.shape[1], self._draft.remake_after
        assert s.learned.similarity_sums is not None and wanted is not None
        sums = s.learned.similarity_sums + cosines.sum(dim=1)
        known = replace(
            s.learned,
            similarity_sums=sums,
            similarity_weight=s.learned.similarity_weight + count,
        )
        if count and known.similarity_weight < wanted:
            s.learned = known
            return
        s.learned = replace(known, similarity_sums=None)
        if count and s.plan is not None:
            s.similarity = known.similarity
            s.plan = replace(s.plan, dropped=choose_dropped(s.similarity, self._draft.drop))
