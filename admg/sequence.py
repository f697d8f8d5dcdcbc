"""One sequence inside the engine: its tokens, its slots, its plan and its running numbers.

Everything that belongs to a sequence hangs on this object, so retiring, refilling or reordering
the batch cannot mix two sequences up (invariant I7).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from admg.acceptance import Acceptance
from admg.drafters.confidence_exit import ConfidenceExit
from admg.drafters.ngram_index import NgramIndex
from admg.kv_arena import Extent
from admg.learned import Learned
from admg.plan import DraftPlan
from admg.request import Request
from admg.sampling import LawRow
from admg.stats import SequenceStats


@dataclass(slots=True)
class Tally:
    """Running sums of one sequence; `stats` turns them into what the sequence reports."""

    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    plain_seconds: float = 0.0
    histogram: list[int] = field(default_factory=list)
    committed: int = 0
    drafted: dict[str, int] = field(default_factory=dict)

    def count_step(
        self,
        accepted: int,
        drafted: list[tuple[str, int]],
        committed: int,
        seconds: float,
        plain: float,
    ) -> None:
        """One verification pass: `plain` is the calibrated time of a plain step in its place."""
        while len(self.histogram) <= accepted:
            self.histogram.append(0)
        self.histogram[accepted] += 1
        self.committed += committed
        for source, count in drafted:
            self.drafted[source] = self.drafted.get(source, 0) + count
        self.decode_seconds += seconds
        self.plain_seconds += committed * plain


@dataclass(slots=True)
class Sequence:
    """A prompt with its growing completion.

    `tokens` are the prompt's and the committed ones. `computed` counts the leading tokens whose
    keys and values are in the arena in every layer: while decoding it is len(tokens) - 1, since
    the last committed token is the next pass's input (invariant I1). `salt` numbers the rounds of
    verification by rejection; under shared noise it stays 0, for every round must see the same.
    """

    handle: int
    request: Request
    base: int
    stops: tuple[int, ...]
    tokens: list[int]
    extent: Extent
    computed: int = 0
    plan: DraftPlan | None = None
    exit: ConfidenceExit | None = None
    salt: int = 0
    similarity: tuple[float, ...] = ()
    units: list[list[float]] | None = None
    learned: Learned = field(default_factory=Learned)
    ngrams: NgramIndex = field(default_factory=NgramIndex)
    lookup_acceptance: Acceptance = field(default_factory=Acceptance)
    own_acceptance: Acceptance = field(default_factory=Acceptance)
    tally: Tally = field(default_factory=Tally)

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def completion(self) -> list[int]:
        """Committed tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def remaining(self) -> int:
        """Tokens that `max_tokens` still allows."""
        return self.request.sampling.max_tokens - (len(self.tokens) - self.prompt_length)

    @property
    def draft_limit(self) -> int:
        """Longest useful draft now: one token of what remains is the target's own."""
        wanted = self.plan.draft_tokens if self.plan is not None else 0
        return max(0, min(wanted, self.remaining - 1))

    @property
    def lookup_limit(self) -> int:
        """Longest useful lookup draft; 0 where this sequence is to be decoded plainly."""
        return self.remaining - 1 if self.plan is not None and self.plan.draft_tokens else 0

    def law_row(self, draft: tuple[int, ...] = ()) -> LawRow:
        """The law of the token after the committed ones and the hypothetical `draft`."""
        position = len(self.tokens) - self.prompt_length + len(draft)
        sampling = self.request.sampling
        return LawRow(
            sampling,
            self.base,
            position,
            banned=self.stops if position < sampling.min_tokens else (),
            seen=lambda: [*self.tokens, *draft],
            salt=self.salt,
        )

    def stats(self, kv_saved: float | None = None) -> SequenceStats:
        """The numbers that the finished sequence reports; `kv_saved` is for the engine to say."""
        t = self.tally
        steps = sum(t.histogram)
        drafted = sum(t.drafted.values())
        accepted = sum(i * n for i, n in enumerate(t.histogram))
        both = t.prefill_seconds + t.decode_seconds
        return SequenceStats(
            prompt_tokens=self.prompt_length,
            completion_tokens=len(self.tokens) - self.prompt_length,
            num_spec_steps=steps,
            num_draft_tokens=drafted,
            num_accepted_draft_tokens=accepted,
            mean_acceptance_length=t.committed / steps if steps else None,
            draft_acceptance_rate=accepted / drafted if drafted else None,
            acceptance_histogram=list(t.histogram),
            speedup=t.plain_seconds / t.decode_seconds if t.decode_seconds else None,
            speedup_end_to_end=(
                (t.prefill_seconds + t.plain_seconds) / both if t.decode_seconds else None
            ),
            dropped_attention_layers=list(self.plan.dropped) if self.plan else [],
            attention_similarity=list(self.similarity),
            draft_kv_saved=kv_saved,
            drafter_tokens=dict(t.drafted),
            prefill_seconds=t.prefill_seconds,
            decode_seconds=t.decode_seconds,
            queue_seconds=t.queue_seconds,
        )
