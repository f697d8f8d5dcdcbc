"""An output in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from jobs.explained import all_rounds
from jobs.report.chunks import Chunk, chunks, opened, result_files
from jobs.report.sample import Sample
from pipeline.choices import read_choices
from pipeline.keys import KEY_BYTES
from pipeline.ledger import read_columns
from pipeline.manifest import MANIFEST, SUCCESS, depended_on_order, read_manifest
from pipeline.names import SUFFIX
from pipeline.redaction import redacted
from pipeline.retry import PATIENCE, Patience
from pipeline.schema import FINISH_REASON, RESULT_FIELDS, ROW_KEY, STATISTICS
from pipeline.storage import Store
from pipeline.summary import COLUMNS, Summary
from pipeline.threads import over_threads

_SPREAD = ("speedup", "mean_acceptance_length")
_SAMPLE_BATCH = 64


@dataclass(frozen=True)
class Report:
    """One output in numbers; None where nothing was measured.

    `rows_reused`, `seconds` and `tokens_per_second` are those of the last run that added rows, and
    `rows_not_in_input` are rows of earlier inputs, which stay;
    `audit` has the numbers of `pipeline.audit_sums`, `choices` the rounds by what the drafter auto
    chose in the last run. `order_dependent` says whether other rows or measured time may have moved
    the statistics of drafting. Percentiles are those of `rows_sampled` rows,
    which is all of them unless there are very many.
    """

    output: str
    complete: bool
    rows: int
    rows_ok: int
    rows_error: int
    prompt_tokens: int
    completion_tokens: int
    mean_acceptance_length: float | None
    draft_acceptance_rate: float | None
    speedup: float | None
    speedup_end_to_end: float | None
    errors_by_code: dict[str, int]
    finish_reasons: dict[str, int]
    speedup_percentiles: dict[str, float]
    acceptance_percentiles: dict[str, float]
    sample: dict[str, Any] = field(default_factory=dict)
    rows_reused: int | None = None
    rows_not_in_input: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    audit: dict[str, int | float | None] = field(default_factory=dict)
    rows_sampled: int = 0
    choices: dict[str, int] = field(default_factory=dict)
    order_dependent: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The values by name, fit for JSON and for others to see."""
        return asdict(self) | {"output": redacted(self.output)}


class Part(Protocol):
    """One thing that is gathered while an output is read; it names the columns that it needs."""

    columns: Sequence[str]

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""


class Totals:
    """The sums, reasons and percentiles of a `Report`."""

    columns = (*COLUMNS, FINISH_REASON)

    def __init__(self) -> None:
        self.summary = Summary()
        self._reasons: Counter[str] = Counter()
        self._sample = Sample(_SPREAD)

    def add(self, chunk: Chunk) -> None:
        """Take rows in."""
        self.summary = Summary.total([self.summary, Summary.of(chunk.table)])
        for counted in pc.value_counts(chunk.table[FINISH_REASON]).to_pylist():
            if counted["values"] is not None:
                self._reasons[counted["values"]] += counted["counts"]
        self._sample.add(chunk.table)

    def report(self, store: Store) -> Report:
        """The report of the rows so far."""
        summary, sample = self.summary, self._sample.table
        last = read_manifest(store.uri)["run"] if store.exists(MANIFEST) else {}
        return Report(
            output=store.uri,
            complete=store.exists(SUCCESS),
            rows=summary.rows,
            rows_ok=summary.rows - summary.rows_error,
            rows_error=summary.rows_error,
            prompt_tokens=summary.prompt_tokens,
            completion_tokens=summary.completion_tokens,
            **summary.statistics(),
            errors_by_code=summary.errors_by_code,
            finish_reasons=dict(self._reasons.most_common()),
            speedup_percentiles=_percentiles(sample["speedup"]),
            acceptance_percentiles=_percentiles(sample["mean_acceptance_length"]),
            sample=sample_row(store.uri),
            rows_reused=last.get("rows_reused"),
            rows_not_in_input=last.get("rows_not_in_input"),
            tokens_per_second=last.get("tokens_per_second"),
            audit=summary.audit.to_dict(),
            rows_sampled=sample.num_rows,
            choices=all_rounds(read_choices(store)),
            order_dependent=depended_on_order(store),
        )


def gather(store: Store, names: Sequence[str], parts: Sequence[Part]) -> None:
    """Read the files once, for all parts.

    Raises:
        ValueError: a file that cannot be read, or that is no result of a run.
    """
    columns = list(dict.fromkeys(name for part in parts for name in part.columns))
    for chunk in chunks(store, names, columns):
        for part in parts:
            part.add(chunk)


def read_output(output: str) -> Report:
    """Sum up the files of an output.

    Raises:
        ValueError: a folder that holds no results of ours; a finished run over no rows is one.
    """
    store = Store(output)
    totals = Totals()
    if store.exists(SUCCESS) and not store.names(SUFFIX):
        totals.add(Chunk("", 0, pa.schema([*RESULT_FIELDS, *STATISTICS]).empty_table()))
    else:
        gather(store, result_files(store), [totals])
    return totals.report(store)


def rows_committed(output: str, patience: Patience = PATIENCE) -> int:
    """How many rows an output holds, each once, however many copies a crash has left.

    Raises:
        ValueError: a file that cannot be read, or that is no result of a run.
        StorageError: the storage does not answer.
    """
    store = Store(output, patience=patience)
    keys = over_threads(lambda n: read_columns(store, n, [ROW_KEY])[ROW_KEY], store.names(SUFFIX))
    chunks = [chunk for column in keys for chunk in column.chunks]
    return int(pc.count_distinct(pa.chunked_array(chunks, pa.binary(KEY_BYTES))).as_py())


def sample_row(output: str) -> dict[str, Any]:
    """The first row of the first file that has a completion; {} where there is none."""
    store = Store(output)
    for name in store.names(".parquet"):
        with opened(store, name, ()) as file:
            for batch in file.iter_batches(_SAMPLE_BATCH):
                found = batch.filter(pc.equal(batch["status"], "ok")).slice(0, 1).to_pylist()
                if found and found[0]["completion"]:
                    found[0].pop(ROW_KEY, None)
                    return found[0]
    return {}


def _percentiles(column: pa.ChunkedArray) -> dict[str, float]:
    if column.null_count == len(column):
        return {}
    shares = [0.05, 0.5, 0.95]
    values = pc.quantile(column, shares).to_pylist()
    return {f"p{round(100 * s)}": v for s, v in zip(shares, values, strict=True)}
