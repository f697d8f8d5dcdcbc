"""Two outputs, row by row: the rows that both hold, by their ids.

Of each row some numbers and a hash of its text are kept, 45 bytes; of outputs that are so large
that this would be too much, the same share of ids is taken on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from jobs.report.chunks import Chunk, id_column, opened, result_files
from jobs.report.details import Settings, read_settings
from jobs.report.examples import add_texts, clip
from jobs.report.read import Report, Totals, gather
from pipeline.key_columns import id_keys
from pipeline.redaction import redacted_values
from pipeline.schema import COMPLETION, STATUS
from pipeline.storage import Store

MOST_ROWS = 2_000_000
_EXAMPLES = 6
_LONGEST_TEXT = 1 << 20
# Characters that are shown of texts that differ.
_BEFORE, _AFTER = 200, 400
METRICS = (
    "speedup",
    "mean_acceptance_length",
    "draft_acceptance_rate",
    "completion_tokens",
    "decode_seconds",
)
# Where an output lies says nothing about what is in it.
_NO_DIFFERENCE = ("output",)


class Keyed:
    """Of every row (or of a share of the ids): keys of id and text, numbers, its place."""

    def __init__(self, id_name: str, names: Sequence[str], share: float) -> None:
        self.columns: Sequence[str] = (id_name, STATUS, COMPLETION, *METRICS)
        self._id = id_name
        self._files = {name: i for i, name in enumerate(names)}
        self._names = list(names)
        self._below = None if share >= 1 else np.uint64(int(share * 2**64))
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""
        table = chunk.table
        keys = id_keys(table[self._id])
        texts = id_keys(pc.fill_null(table[COMPLETION], ""))[:, 0]
        ok = pc.equal(table[STATUS], "ok").to_numpy()
        places = (self._files[chunk.file] << 32) + chunk.start + np.arange(table.num_rows)
        values = np.stack(
            [
                pc.fill_null(table[name].cast("double"), math.nan).to_numpy().astype(np.float32)
                for name in METRICS
            ],
            axis=1,
        )
        stay = slice(None) if self._below is None else keys[:, 1] < self._below
        self._parts.append(tuple(v[stay] for v in (keys[:, 0], texts, ok, places, values)))

    def rows(self) -> KeyedRows:
        """Everything so far."""
        return KeyedRows(*(np.concatenate(values) for values in zip(*self._parts, strict=True)))

    def place(self, place: int) -> tuple[str, int]:
        """The file and the row in it."""
        return self._names[place >> 32], place & 0xFFFFFFFF


@dataclass(frozen=True)
class KeyedRows:
    """Rows as arrays; `values[:, i]` are of `METRICS[i]`."""

    keys: np.ndarray
    texts: np.ndarray
    ok: np.ndarray
    places: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Paired:
    """One number over the rows where both sides know it: means, mean difference and its error."""

    rows: int
    a: float
    b: float
    difference: float
    standard_error: float | None


@dataclass(frozen=True)
class Comparison:
    """What two outputs have in common and what not.

    Counts of rows are those of a `share` of the ids, the same ones on both sides; 1 is all of them.
    `values` are the pairs of numbers that `paired` sums up, for plots.
    """

    a: Report
    b: Report
    share: float
    rows_common: int
    rows_only_a: int
    rows_only_b: int
    both_ok: int
    same_completions: int
    ok_only_a: int
    ok_only_b: int
    paired: Mapping[str, Paired]
    settings: Mapping[str, tuple[Any, Any]]
    examples: Sequence[Mapping[str, Any]]
    values: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def different_completions(self) -> int:
        """Of the rows that have a completion on both sides."""
        return self.both_ok - self.same_completions

    def to_dict(self) -> dict[str, Any]:
        """The values by name, fit for JSON."""
        names = ("share", "rows_common", "rows_only_a", "rows_only_b", "both_ok",
                 "same_completions", "different_completions", "ok_only_a", "ok_only_b")  # fmt: skip
        return {
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            **{name: getattr(self, name) for name in names},
            "paired": {name: asdict(pair) for name, pair in self.paired.items()},
            "settings": redacted_values(dict(self.settings)),
            "examples": list(self.examples),
        }


def compare(a: str, b: str) -> Comparison:
    """Read two outputs and put the rows that both hold beside each other.

    Raises:
        ValueError: a folder that holds no results of ours, or ids of different columns' types.
    """
    stores = (Store(a), Store(b))
    names = [result_files(store) for store in stores]
    most = max(_rows_of(store, files) for store, files in zip(stores, names, strict=True))
    share = min(1.0, MOST_ROWS / max(most, 1))
    reports, keyed, rows = [], [], []
    for store, files in zip(stores, names, strict=True):
        totals, own = Totals(), Keyed(id_column(store, files), files, share)
        gather(store, files, [totals, own])
        reports.append(totals.report(store))
        keyed.append(own)
        rows.append(own.rows())
    _, in_a, in_b = np.intersect1d(rows[0].keys, rows[1].keys, return_indices=True)
    both = rows[0].ok[in_a] & rows[1].ok[in_b]
    same = rows[0].texts[in_a] == rows[1].texts[in_b]
    pair_a, pair_b = in_a[both], in_b[both]
    values = {
        name: _known(rows[0].values[pair_a, i], rows[1].values[pair_b, i])
        for i, name in enumerate(METRICS)
    }
    different = np.flatnonzero(both & ~same)[:_EXAMPLES]
    places = [
        [keyed[side].place(int(p)) for p in rows[side].places[found[different]]]
        for side, found in enumerate((in_a, in_b))
    ]
    settings = [read_settings(s, files) for s, files in zip(stores, names, strict=True)]
    return Comparison(
        a=reports[0],
        b=reports[1],
        share=share,
        rows_common=len(in_a),
        rows_only_a=len(np.unique(rows[0].keys)) - len(in_a),
        rows_only_b=len(np.unique(rows[1].keys)) - len(in_b),
        both_ok=int(both.sum()),
        same_completions=int((both & same).sum()),
        ok_only_a=int((rows[0].ok[in_a] & ~rows[1].ok[in_b]).sum()),
        ok_only_b=int((~rows[0].ok[in_a] & rows[1].ok[in_b]).sum()),
        paired={n: _paired(*pair) for n, pair in values.items() if len(pair[0])},
        settings=_different(*settings),
        examples=_examples(
            stores, places, [id_column(s, n) for s, n in zip(stores, names, strict=True)]
        ),
        values=values,
    )


def _rows_of(store: Store, names: Sequence[str]) -> int:
    count = 0
    for name in names:
        with opened(store, name, ()) as file:
            count += file.metadata.num_rows
    return count


def _known(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = np.isfinite(a) & np.isfinite(b)
    return a[both].astype(float), b[both].astype(float)


def _paired(a: np.ndarray, b: np.ndarray) -> Paired:
    change = b - a
    error = float(change.std(ddof=1) / math.sqrt(len(a))) if len(a) > 1 else None
    return Paired(len(a), float(a.mean()), float(b.mean()), float(change.mean()), error)


def _different(a: Settings, b: Settings) -> dict[str, tuple[Any, Any]]:
    """Settings and versions that are not the same; what one side lacks is None there."""
    sides = [{**s.config, **{f"version of {n}": v for n, v in s.versions.items()}} for s in (a, b)]
    names = [n for n in dict.fromkeys([*sides[0], *sides[1]]) if n not in _NO_DIFFERENCE]
    pairs = {n: (sides[0].get(n), sides[1].get(n)) for n in names}
    return {n: pair for n, pair in pairs.items() if pair[0] != pair[1]}


def _examples(
    stores: Sequence[Store], places: Sequence[Sequence[tuple[str, int]]], ids: Sequence[str]
) -> list[dict[str, Any]]:
    sides = []
    for store, side, name in zip(stores, places, ids, strict=True):
        rows: list[dict[str, Any]] = [{"place": place} for place in side]
        add_texts(store, rows, [name], _LONGEST_TEXT)
        sides.append(rows)
    return [
        {"id": a["kept"][ids[0]], **around(a["completion"], b["completion"])}
        for a, b in zip(*sides, strict=True)
    ]


def around(a: str, b: str) -> dict[str, Any]:
    """Two texts from a little before to a little after the place from which on they differ."""
    same = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    start = max(0, same - _BEFORE)
    cut = "…" if start else ""
    return {
        "same_characters": same,
        "before": cut + a[start:same],
        "a": clip(a[same:], _AFTER),
        "b": clip(b[same:], _AFTER),
    }
