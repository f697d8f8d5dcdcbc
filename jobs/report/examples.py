"""Rows worth a look: the slowest, the least accepted, the failed. Their texts are read last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.report.chunks import Chunk, opened
from pipeline.schema import COMPLETION, ERROR_CODE, ERROR_MESSAGE, FINISH_REASON
from pipeline.storage import Store

MOST_ROWS = 8
_MOST_CODES, _EXAMPLES_OF_A_CODE = 24, 3
# Of a row that drafted less an acceptance rate says little.
_FEWEST_DRAFT_TOKENS = 8
_TEXT_CHARS, _KEPT_CHARS = 700, 200
_BATCH = 2048

_FACTS = (
    "prompt_tokens",
    "completion_tokens",
    "prefill_seconds",
    "decode_seconds",
    "speedup",
    "mean_acceptance_length",
    "draft_acceptance_rate",
    "num_draft_tokens",
    "dropped_attention_layers",
    FINISH_REASON,
)


def clip(text: str, length: int = _TEXT_CHARS) -> str:
    """The beginning of a text, with its end marked where it was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _seconds(table: pa.Table) -> np.ndarray:
    parts = (table["prefill_seconds"], table["decode_seconds"])
    return sum(pc.fill_null(part, 0.0).to_numpy() for part in parts)


def _not_accepted(table: pa.Table) -> np.ndarray:
    rate = pc.fill_null(table["draft_acceptance_rate"], float("nan")).to_numpy()
    enough = pc.fill_null(table["num_draft_tokens"], 0).to_numpy() >= _FEWEST_DRAFT_TOKENS
    return np.where(enough, -rate, np.nan)


def _slowed_down(table: pa.Table) -> np.ndarray:
    return -pc.fill_null(table["speedup"], float("nan")).to_numpy()


# A title, and a number for each row that is the larger the more the row belongs there.
LISTS: Mapping[str, Callable[[pa.Table], np.ndarray]] = {
    "Slowest rows": _seconds,
    "Least accepted rows": _not_accepted,
    "Rows with the lowest speedup": _slowed_down,
}


class Extremes:
    """The rows that lead each of `LISTS`, with where they stand."""

    def __init__(self, id_column: str) -> None:
        self.columns: Sequence[str] = (id_column, *_FACTS)
        self._id = id_column
        self._best: dict[str, list[tuple[float, dict[str, Any]]]] = {name: [] for name in LISTS}

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""
        good = chunk.table.append_column("_row", pa.array(range(chunk.table.num_rows)))
        good = good.filter(pc.is_valid(good["completion_tokens"]))
        for name, score_of in LISTS.items():
            scores = score_of(good)
            best = self._best[name]
            least = best[-1][0] if len(best) == MOST_ROWS else -np.inf
            rows = np.flatnonzero(scores > least)  # a NaN is larger than nothing
            rows = rows[np.argsort(-scores[rows], kind="stable")][:MOST_ROWS]
            for row, values in zip(rows, good.take(pa.array(rows)).to_pylist(), strict=True):
                place = (chunk.file, chunk.start + values.pop("_row"))
                values = {"id": values[self._id], "place": place} | values
                best.append((float(scores[row]), values))
            self._best[name] = sorted(best, key=lambda pair: -pair[0])[:MOST_ROWS]

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each list, the first one first; lists that have none are left out."""
        return {n: [values for _, values in best] for n, best in self._best.items() if best}


@dataclass
class Failures:
    """Error rows of one code: how many, and the first ones."""

    code: str
    count: int
    examples: list[dict[str, Any]]


class ErrorRows:
    """Error rows by code."""

    def __init__(self, id_column: str) -> None:
        self.columns: Sequence[str] = (id_column, ERROR_CODE, ERROR_MESSAGE, "attempts")
        self._id = id_column
        self._codes: dict[str, Failures] = {}

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""
        failed = chunk.table.filter(pc.is_valid(chunk.table[ERROR_CODE]))
        for counted in pc.value_counts(failed[ERROR_CODE]).to_pylist():
            code, count = counted["values"], counted["counts"]
            seen = self._codes.setdefault(code, Failures(code, 0, []))
            seen.count += count
            wanted = _EXAMPLES_OF_A_CODE - len(seen.examples)
            if wanted > 0:
                rows = failed.filter(pc.equal(failed[ERROR_CODE], code)).slice(0, wanted)
                seen.examples += [
                    {
                        "id": row[self._id],
                        "message": clip(row[ERROR_MESSAGE] or ""),
                        "attempts": row["attempts"],
                    }
                    for row in rows.to_pylist()
                ]

    def failures(self) -> list[Failures]:
        """The most frequent codes, the most frequent one first."""
        return sorted(self._codes.values(), key=lambda f: (-f.count, f.code))[:_MOST_CODES]


def add_texts(
    store: Store, rows: Sequence[dict[str, Any]], keep: Sequence[str], chars: int = _TEXT_CHARS
) -> None:
    """Give rows that have a `place` their completions and kept columns, clipped."""
    wanted: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in rows:
        file, index = row["place"]
        wanted.setdefault(file, {}).setdefault(index, []).append(row)
    for name, places in wanted.items():
        with opened(store, name, (COMPLETION, *keep)) as file:
            start = 0
            for batch in file.iter_batches(_BATCH, columns=[COMPLETION, *keep], use_threads=False):
                for index in places:
                    if start <= index < start + len(batch):
                        _fill(places[index], batch.slice(index - start, 1).to_pylist()[0], chars)
                start += len(batch)
                if start > max(places):
                    break


def _fill(rows: Sequence[dict[str, Any]], values: dict[str, Any], chars: int) -> None:
    text = clip(values.pop(COMPLETION) or "", chars)
    for row in rows:
        row["completion"] = text
        row["kept"] = {name: clip(str(value), _KEPT_CHARS) for name, value in values.items()}
