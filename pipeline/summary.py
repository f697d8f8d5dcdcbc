"""Sums over an output's rows, and the ratios made of them.

Ratios are made of sums and not of rows' ratios: a row with ten times the tokens counts ten times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit_sums import AUDIT_COLUMNS, AuditSums
from pipeline.progress import ratio
from pipeline.schema import ERROR_CODE, STATUS

COLUMNS = (
    STATUS,
    ERROR_CODE,
    "prompt_tokens",
    "completion_tokens",
    "num_spec_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
    "mean_acceptance_length",
    "speedup",
    "speedup_end_to_end",
    "prefill_seconds",
    "decode_seconds",
    *AUDIT_COLUMNS,
)


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums over rows. `spec_tokens` are the tokens that spec steps committed."""

    rows: int = 0
    rows_error: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_spec_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    spec_tokens: float = 0.0
    plain_seconds: float = 0.0
    decode_seconds: float = 0.0
    plain_seconds_end_to_end: float = 0.0
    seconds_end_to_end: float = 0.0
    errors_by_code: dict[str, int] = field(default_factory=dict)
    audit: AuditSums = field(default_factory=AuditSums)

    @classmethod
    def of(cls, table: pa.Table) -> Summary:
        """The sums of a table that has `COLUMNS`."""
        decode = pc.fill_null(table["decode_seconds"], 0.0)
        both = pc.add(decode, pc.fill_null(table["prefill_seconds"], 0.0))
        codes = Counter(c for c in table[ERROR_CODE].to_pylist() if c is not None)
        plain, timed = _weighted(table["speedup"], decode)
        plain_both, timed_both = _weighted(table["speedup_end_to_end"], both)
        return cls(
            rows=table.num_rows,
            rows_error=int(_sum(pc.equal(table[STATUS], "error"))),
            prompt_tokens=int(_sum(table["prompt_tokens"])),
            completion_tokens=int(_sum(table["completion_tokens"])),
            num_spec_steps=int(_sum(table["num_spec_steps"])),
            num_draft_tokens=int(_sum(table["num_draft_tokens"])),
            num_accepted_draft_tokens=int(_sum(table["num_accepted_draft_tokens"])),
            spec_tokens=_weighted(table["mean_acceptance_length"], table["num_spec_steps"])[0],
            plain_seconds=plain,
            decode_seconds=timed,
            plain_seconds_end_to_end=plain_both,
            seconds_end_to_end=timed_both,
            errors_by_code=dict(sorted(codes.items())),
            audit=AuditSums.of(table),
        )

    @classmethod
    def total(cls, parts: Iterable[Summary]) -> Summary:
        """The sums of several tables."""
        sums: dict[str, Any] = {}
        codes: Counter[str] = Counter()
        audit = AuditSums()
        for part in parts:
            codes.update(part.errors_by_code)
            audit += part.audit
            for name in cls.__dataclass_fields__:
                if name not in ("errors_by_code", "audit"):
                    sums[name] = sums.get(name, 0) + getattr(part, name)
        return cls(**sums, errors_by_code=dict(sorted(codes.items())), audit=audit)

    @property
    def mean_acceptance_length(self) -> float | None:
        """Committed tokens per spec step."""
        return ratio(self.spec_tokens, self.num_spec_steps)

    @property
    def draft_acceptance_rate(self) -> float | None:
        """Accepted over drafted."""
        return ratio(self.num_accepted_draft_tokens, self.num_draft_tokens)

    @property
    def speedup(self) -> float | None:
        """Time that plain decoding would have taken over the time taken, where rows know it."""
        return ratio(self.plain_seconds, self.decode_seconds)

    @property
    def speedup_end_to_end(self) -> float | None:
        """The same with prefill on both sides."""
        return ratio(self.plain_seconds_end_to_end, self.seconds_end_to_end)

    def totals(self) -> dict[str, int]:
        """The counts, for the manifest."""
        return {
            "rows": self.rows,
            "rows_ok": self.rows - self.rows_error,
            "rows_error": self.rows_error,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "num_spec_steps": self.num_spec_steps,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_draft_tokens": self.num_accepted_draft_tokens,
        }

    def statistics(self) -> dict[str, float | None]:
        """The ratios, for the manifest."""
        return {
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_acceptance_rate": self.draft_acceptance_rate,
            "speedup": self.speedup,
            "speedup_end_to_end": self.speedup_end_to_end,
        }


def _sum(column: pa.ChunkedArray) -> float:
    return pc.sum(column).as_py() or 0


def _weighted(values: pa.ChunkedArray, weights: pa.ChunkedArray) -> tuple[float, float]:
    """Sum of value times weight, and of the weights, over rows that have a value."""
    known = pc.is_valid(values)
    weighted = pc.multiply(values, pc.cast(weights, pa.float64()))
    return float(_sum(weighted)), float(_sum(pc.if_else(known, weights, 0)))
