"""What a page shows beyond a report's sums, gathered in the same reading."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.report.chunks import Chunk
from jobs.report.sample import Sample
from pipeline.commit_times import tokens_by_source

SPREAD = (
    "prompt_tokens",
    "completion_tokens",
    "speedup",
    "mean_acceptance_length",
    "draft_acceptance_rate",
    "queue_seconds",
    "attention_similarity",
    "drafter_tokens",
)
# Prompts of 2^i to 2^(i+1) - 1 tokens are one class.
_LENGTH_CLASSES = 32


def members(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The members of a list column with the row and the position of each."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = pc.list_flatten(lists)
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    new = np.flatnonzero(np.diff(rows, prepend=-1))
    starts = np.repeat(new, np.diff(np.append(new, len(rows))))
    return values.to_numpy(zero_copy_only=False), rows, np.arange(len(rows)) - starts


class Rows:
    """A sample of rows with the columns of `SPREAD`, in the order of the files."""

    columns: Sequence[str] = SPREAD

    def __init__(self) -> None:
        self.sample = Sample(SPREAD)

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""
        self.sample.add(chunk.table)


class Positions:
    """Passes by the number of draft tokens that they accepted, of all rows."""

    columns: Sequence[str] = ("acceptance_histogram",)

    def __init__(self) -> None:
        self.passes = np.zeros(0)

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""
        counts, _, positions = members(chunk.table["acceptance_histogram"])
        self.passes = _sum(self.passes, np.bincount(positions, counts) if len(counts) else [])

    def reached(self) -> list[float]:
        """The share of passes that accepted at least 1, 2, ... draft tokens."""
        if not self.passes.sum():
            return []
        at_least = np.cumsum(self.passes[::-1])[::-1]
        return [float(share) for share in at_least[1:] / self.passes.sum()]


class Layers:
    """Rows whose draft dropped a layer, by layer and length of the prompt, and similarities."""

    columns: Sequence[str] = (
        "prompt_tokens",
        "dropped_attention_layers",
        "attention_similarity",
    )

    def __init__(self) -> None:
        self._dropped = np.zeros((_LENGTH_CLASSES, 0))
        self._rows = np.zeros(_LENGTH_CLASSES)
        self.similarity_sums = np.zeros(0)
        self.similarity_rows = np.zeros(0)

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""
        measured = chunk.table.filter(pc.is_valid(chunk.table["dropped_attention_layers"]))
        length = pc.fill_null(measured["prompt_tokens"], 0).to_numpy()
        classes = np.log2(np.maximum(length, 1)).astype(int).clip(0, _LENGTH_CLASSES - 1)
        layers, rows, _ = members(measured["dropped_attention_layers"])
        values, _, positions = members(measured["attention_similarity"])
        last = max(layers.max(initial=-1), positions.max(initial=-1))
        count = max(self.count, int(last) + 1)
        self._rows += np.bincount(classes, minlength=_LENGTH_CLASSES)
        wide = np.zeros((_LENGTH_CLASSES, count))
        wide[:, : self.count] = self._dropped
        np.add.at(wide, (classes[rows], layers.astype(int)), 1)
        self._dropped = wide
        values = values.astype(float)
        known = np.isfinite(values)
        self.similarity_sums = _sum(
            self.similarity_sums, np.bincount(positions[known], values[known], count)
        )
        self.similarity_rows = _sum(
            self.similarity_rows, np.bincount(positions[known], minlength=count)
        )

    @property
    def count(self) -> int:
        """How many layers are known of."""
        return self._dropped.shape[1]

    def dropped(self) -> list[tuple[str, np.ndarray]]:
        """Shares by layer: of all rows, then of each class of prompt lengths that has rows."""
        if not self._dropped.sum():
            return []
        found = [("all rows", self._dropped.sum(0) / self._rows.sum())]
        for i in np.flatnonzero(self._rows):
            found.append((f"{2**i}-{2 ** (i + 1) - 1}", self._dropped[i] / self._rows[i]))
        return found


@dataclass
class FileSums:
    """Sums over one file, for what happened when."""

    rows: int = 0
    completion_tokens: int = 0
    drafter_tokens: Counter[str] = field(default_factory=Counter)


class Files:
    """Sums of every file by name, and draft tokens by source over all of them."""

    columns: Sequence[str] = ("completion_tokens", "drafter_tokens")

    def __init__(self) -> None:
        self.by_name: dict[str, FileSums] = {}

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""
        sums = self.by_name.setdefault(chunk.file, FileSums())
        sums.rows += chunk.table.num_rows
        sums.completion_tokens += pc.sum(chunk.table["completion_tokens"]).as_py() or 0
        sums.drafter_tokens.update(tokens_by_source(chunk.table["drafter_tokens"]))

    def drafter_tokens(self) -> Mapping[str, int]:
        """Draft tokens by source, the most used first."""
        total: Counter[str] = Counter()
        for sums in self.by_name.values():
            total.update(sums.drafter_tokens)
        return dict(total.most_common())


class Error:
    """The standard error of the estimated speedup, as that of a ratio of sums over rows."""

    columns: Sequence[str] = ("speedup", "decode_seconds")

    def __init__(self) -> None:
        self._n = 0
        self._d = self._p = self._dd = self._dp = self._pp = 0.0

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""
        known = chunk.table.filter(pc.is_valid(chunk.table["speedup"]))
        d = pc.fill_null(known["decode_seconds"], 0.0).to_numpy()
        p = d * known["speedup"].to_numpy()
        self._n += len(d)
        self._d, self._p = self._d + d.sum(), self._p + p.sum()
        self._dd, self._dp = self._dd + d @ d, self._dp + d @ p
        self._pp += p @ p

    @property
    def value(self) -> float | None:
        """None for a single row. Rows that were decoded together share their rounds."""
        if self._n < 2 or not self._d:
            return None
        ratio = self._p / self._d
        squares = max(0.0, self._pp - 2 * ratio * self._dp + ratio * ratio * self._dd)
        return math.sqrt(squares * self._n / (self._n - 1)) / float(self._d)


def _sum(a: np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    wide = np.zeros(max(len(a), len(b)))
    wide[: len(a)] += a
    wide[: len(b)] += b
    return wide
