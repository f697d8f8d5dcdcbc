"""From timed runs to the numbers that are reported; pure functions.

Seconds are wall time. The first token of a sequence comes with its prefill, so decoding makes one
token less per sequence. Rates are medians over the repeats. A ratio compares the two runs of the
same repeat; reported are its median, its lowest and its highest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """One timed run of one system over a cell's prompts.

    None where a system does not tell: `prefill_seconds`, `passes` (target passes summed over the
    sequences, their prefill not counted), `rounds` (decoding passes over the batch), `accepted` of
    `drafted` tokens, `dropped` attention layers (mean over the sequences), `draft_seconds` and
    `verify_seconds` (plain steps too), of whole passes, `peak_resident_bytes` (so far, of the
    system's processes), `explanation` (of a controller; see `admg.controller.Explanation`).
    """

    seconds: float
    sequences: int
    prompt_tokens: int
    completion_tokens: int
    prefill_seconds: float | None = None
    passes: int | None = None
    rounds: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    dropped: float | None = None
    draft_seconds: float | None = None
    verify_seconds: float | None = None
    peak_resident_bytes: int | None = None
    explanation: dict[str, Any] | None = None

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens, end to end."""
        return self.completion_tokens / self.seconds

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Prompt tokens."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else None

    @property
    def decode_seconds(self) -> float | None:
        """All the time that is not prefill."""
        if self.prefill_seconds is None or self.prefill_seconds >= self.seconds:
            return None
        return self.seconds - self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Completion tokens after each sequence's first."""
        seconds = self.decode_seconds
        return (self.completion_tokens - self.sequences) / seconds if seconds else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens per target pass of a sequence."""
        if not self.passes:
            return None
        return (self.completion_tokens - self.sequences) / self.passes

    @property
    def draft_acceptance_rate(self) -> float | None:
        """Accepted / drafted tokens."""
        return (self.accepted or 0) / self.drafted if self.drafted else None

    @property
    def time_shares(self) -> dict[str, float] | None:
        """Shares of the wall time: prefill, draft, verify, and elsewhere."""
        parts = {
            "prefill": self.prefill_seconds,
            "draft": self.draft_seconds,
            "verify": self.verify_seconds,
        }
        shares = {name: s / self.seconds for name, s in parts.items() if s is not None}
        if len(shares) < len(parts):
            return None
        return shares | {"elsewhere": max(0.0, 1 - sum(shares.values()))}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's passes read and compute."""

    matmul_parameters: int  # of all layers and the head; an embedding is only looked up
    bytes_per_parameter: int
    kv_bytes_per_token: int
    attention_width: int  # layers x query heads x head size


@dataclass(frozen=True, slots=True)
class Achieved:
    """What plain decoding reached: bytes read and operations per second, in billions."""

    decode_gbs: float | None
    decode_gflops: float | None
    prefill_gflops: float | None


def median_of(
    outcomes: Sequence[Outcome], number: Callable[[Outcome], float | None]
) -> float | None:
    """The median over the repeats; None where a repeat has no such number."""
    values = [number(o) for o in outcomes]
    known = [v for v in values if v is not None]
    return median(known) if known and len(known) == len(values) else None


def time_shares(outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    """The median shares of the wall time; None where a system does not tell."""
    shares = [o.time_shares for o in outcomes]
    known = [s for s in shares if s is not None]
    if not known or len(known) < len(shares):
        return None
    return {name: median(s[name] for s in known) for name in known[0]}


def ratios(outcomes: Sequence[Outcome], plain: Sequence[Outcome]) -> list[float]:
    """Tokens per second relative to plain decoding, repeat by repeat."""
    return [a.tokens_per_second / b.tokens_per_second for a, b in zip(outcomes, plain, strict=True)]


def cell_numbers(outcomes: Sequence[Outcome], plain: Sequence[Outcome]) -> dict[str, Any]:
    """The numbers of one system in one cell, under the names of the JSON line."""
    relative = ratios(outcomes, plain)
    return {
        "prefill_tokens_per_second": median_of(outcomes, lambda o: o.prefill_tokens_per_second),
        "decode_tokens_per_second": median_of(outcomes, lambda o: o.decode_tokens_per_second),
        "tokens_per_second": median_of(outcomes, lambda o: o.tokens_per_second),
        "mean_acceptance_length": median_of(outcomes, lambda o: o.mean_acceptance_length),
        "ratio_to_plain": median(relative),
        "ratio_low": min(relative),
        "ratio_high": max(relative),
        "peak_resident_bytes": median_of(outcomes, lambda o: o.peak_resident_bytes),
    }


def achieved(
    outcomes: Sequence[Outcome], shape: Shape, lengths: Sequence[int], max_tokens: int
) -> Achieved:
    """Bytes and operations of plain decoding over its seconds.

    A decoding pass reads every weight once and, for each of its sequences, the keys and values of
    all tokens so far. A multiplication with its addition counts as two operations; attention's
    are those of scores and of weighted values, the causal half only.

    Args:
        outcomes: the repeats of plain decoding; without `rounds` nothing can be said.
        shape: the model.
        lengths: prompt tokens of every sequence.
        max_tokens: completion tokens of every sequence.
    """
    new = max_tokens - 1
    contexts = sum(new * n + new * (new + 1) // 2 for n in lengths)
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    tokens = new * len(lengths)
    decode_flops = 2 * shape.matmul_parameters * tokens + 4 * shape.attention_width * contexts
    prefill_flops = 2 * shape.matmul_parameters * sum(lengths) + 4 * shape.attention_width * pairs
    weights = shape.matmul_parameters * shape.bytes_per_parameter

    def rate(total: float, seconds: float | None) -> float | None:
        return total / seconds / 1e9 if seconds else None

    return Achieved(
        decode_gbs=median_of(
            outcomes,
            lambda o: (
                rate(o.rounds * weights + contexts * shape.kv_bytes_per_token, o.decode_seconds)
                if o.rounds is not None
                else None
            ),
        ),
        decode_gflops=median_of(outcomes, lambda o: rate(decode_flops, o.decode_seconds)),
        prefill_gflops=median_of(outcomes, lambda o: rate(prefill_flops, o.prefill_seconds)),
    )
