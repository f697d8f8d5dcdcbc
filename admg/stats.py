"""What a finished sequence reports about itself: plain numbers, vLLM's names where it has one."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SequenceStats:
    """Statistics of one sequence; the field names are the output's column names (DESIGN §5).

    A spec step is one verification pass of this sequence, plain steps (no draft) included, and
    the first token, which the prefill gives, belongs to none.
    `acceptance_histogram[i]` counts the spec steps that accepted i draft tokens.
    `mean_acceptance_length` is committed tokens per spec step and `draft_acceptance_rate` accepted
    over drafted; both are None where their denominator is 0. `speedup` compares decoding with the
    calibrated plain steps (DESIGN §4.5), `speedup_end_to_end` adds the prefill to both sides; None
    where no step was timed. `draft_kv_saved` is the share of the sequence's keys and values that a
    pass of its self-draft does not read, at its last length; None where no such pass was made.
    `drafter_tokens` counts draft tokens by source. Seconds are wall time:
    `decode_seconds` is the time of the rounds that the sequence took part in.
    The engine leaves the last four to who decodes a sequence again, plainly, to compare:
    `audit_identical` says whether the tokens were the same, `audit_near_tie` of those that were
    not whether rounding explains it, and `audit_speedup` is the measured counterpart of `speedup`.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_spec_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    mean_acceptance_length: float | None = None
    draft_acceptance_rate: float | None = None
    acceptance_histogram: list[int] = field(default_factory=list)
    speedup: float | None = None
    speedup_end_to_end: float | None = None
    dropped_attention_layers: list[int] = field(default_factory=list)
    attention_similarity: list[float] = field(default_factory=list)
    draft_kv_saved: float | None = None
    drafter_tokens: dict[str, int] = field(default_factory=dict)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    audited: bool = False
    audit_identical: bool | None = None
    audit_near_tie: bool | None = None
    audit_speedup: float | None = None


@dataclass(slots=True)
class EngineCounters:
    """Sums over everything an engine has done so far, and what it holds now.

    Everything is counted as it happens; the tokens of a sequence that ends in an error stay
    counted. `num_cached_tokens` are prompt tokens that a shared prefix spared. The three times
    are wall seconds of whole passes with all that belongs to them; what else a round does (stop
    checks, detokenizing, bookkeeping) is in none of them. `num_slots_used` of the KV cache's
    `num_slots` belong to the sequences that run.
    """

    prompt_tokens: int = 0
    num_cached_tokens: int = 0
    completion_tokens: int = 0
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    num_spec_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_slots: int = 0
    num_slots_used: int = 0

    def count_step(self, drafted: int, accepted: int) -> None:
        """One sequence's part of a verification pass."""
        self.num_spec_steps += 1
        self.num_draft_tokens += drafted
        self.num_accepted_draft_tokens += accepted
