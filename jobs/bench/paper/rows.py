"""What one cell has counted, row by row, in columns that fit into a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

import numpy as np

from jobs.bench.paper.bootstrap import Counts

_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one system on one task under one law, in the order of the prompts.

    `prompt` and `tokens` are lengths. `passes` are target passes after the prefill, `committed` the
    tokens that they committed, `drafted` and `accepted` draft tokens, `own` those that the model
    itself drafted. `dropped` are the attention layers that its drafts left out in the end,
    `windowed` the (layer, KV head) units that they limited, `mlps` the MLPs left out, the same
    number in every row. `identical` says whether the tokens are those of plain decoding, as far as
    the row goes, and `ended` why it ended. Seconds are only told where a cell was timed: `wall`
    those of all rows together.
    """

    prompt: list[int]
    tokens: list[int]
    passes: list[int]
    committed: list[int]
    drafted: list[int]
    own: list[int]
    accepted: list[int]
    dropped: list[list[int]]
    windowed: list[float]
    identical: list[bool]
    mlps: int = 0
    wall: float = 0.0
    ended: list[str] = field(default_factory=list)
    quality: dict[str, list[float]] = field(default_factory=dict)
    prefill_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON; what is empty is left out."""
        own = {f.name for f in fields(self) if f.default is not MISSING}
        optional = {"quality", "ended", "prefill_seconds", "decode_seconds", *own}
        return {
            key: _rounded(value)
            for key, value in asdict(self).items()
            if value or key not in optional
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rows:
        """What `to_dict` gave."""
        return cls(**values)

    @property
    def per_pass(self) -> Counts:
        """Tokens per target pass."""
        return Counts.of(self.committed, self.passes)

    @property
    def acceptance(self) -> Counts:
        """Accepted over drafted."""
        return Counts.of(self.accepted, self.drafted)

    @property
    def mean_dropped(self) -> float:
        """Attention layers that drafts left out, over the rows for which the model drafted."""
        counts = [len(d) for d, own in zip(self.dropped, self.own, strict=True) if own]
        return sum(counts) / max(1, len(counts))

    def score(self, name: str) -> Counts:
        """A quality's mean over the rows."""
        return Counts.of(self.quality[name], np.ones(len(self)))


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several tasks one after another; only what all of them have."""
    names = ("prompt", "tokens", "passes", "committed", "drafted", "own", "accepted")
    names = (*names, "dropped", "windowed", "identical")
    columns: dict[str, Any] = {n: [v for p in parts for v in getattr(p, n)] for n in names}
    return Rows(**columns, mlps=parts[0].mlps)


def stacked(parts: Sequence[Rows], over: str, under: str) -> Counts:
    """A ratio of several sets on the same prompts: [K, N]."""
    return Counts.of(
        np.array([getattr(p, over) for p in parts]), np.array([getattr(p, under) for p in parts])
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return value
