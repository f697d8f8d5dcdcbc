"""From input columns to prompts and row keys: the stage that the scan and the run share.

It is the one stage that looks at every row of the input, so its loops are kept short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from admg.config import SamplingParams
from pipeline.config import PromptConfig
from pipeline.errors import RowError
from pipeline.keys import KEY_BYTES, KeySet, as_keys, row_keys
from pipeline.parameters import row_parameters
from pipeline.prompts import NOT_UNICODE, PromptBuilder
from pipeline.schema import PARAMETERS, PROMPT, ROW_KEY
from pipeline.stages import append_errors


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; `NOT_UNICODE` where a text is not UTF-8 (Parquet does not check)."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value_of(scalar) for scalar in column]


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return NOT_UNICODE


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """Prompts, own parameters ("" for none) and keys of the rows of one table, in its order."""

    ids: list[int | str]
    prompts: list[str | RowError]
    parameters: list[str]
    keys: list[bytes]


def prepare_rows(
    table: pa.Table,
    id_column: str,
    config: PromptConfig,
    parameters: Sequence[str] = (),
    sampling: SamplingParams | None = None,
) -> PreparedRows:
    """Build the prompt and the key of every row.

    Args:
        table: input columns.
        id_column: the one of the ids.
        config: how prompts are made.
        parameters: the columns that give a row sampling parameters of its own.
        sampling: those of the job.
    """
    columns = [values_of(table[name]) for name in config.columns]
    prompts = PromptBuilder(config).build_all(columns)
    ids: list[int | str] = values_of(table[id_column])
    texts = [None if isinstance(prompt, RowError) else prompt for prompt in prompts]
    own = [""] * len(ids)
    if parameters:
        job = sampling or SamplingParams()
        given = zip(*(values_of(table[name]) for name in parameters), strict=True)
        for i, values in enumerate(given):
            named = dict(zip(parameters, values, strict=True))
            own[i], error = row_parameters(named, job)
            prompts[i] = error if error and texts[i] is not None else prompts[i]
    return PreparedRows(ids, prompts, own, row_keys(ids, texts, own))


@dataclass(frozen=True, slots=True)
class Prepare:
    """Input columns -> id, kept columns, row key, prompt, error; committed rows are left out.

    `committed` gives the committed keys: a function, so that the sorted array can stay in the
    object store, where all processes of a machine share it.
    """

    id_column: str
    keep: Sequence[str]
    prompt: PromptConfig
    committed: Callable[[], KeySet] | None = None
    parameters: Sequence[str] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __call__(self, table: pa.Table) -> pa.Table:
        """One table of input rows to one of prepared rows."""
        rows = prepare_rows(
            table, self.id_column, self.prompt, self.parameters, sampling=self.sampling
        )
        errors = [p if isinstance(p, RowError) else None for p in rows.prompts]
        out = table.select([self.id_column])
        for name in self.keep:
            out = out.append_column(table.schema.field(name), readable(table[name]))
        texts = [None if isinstance(p, RowError) else p for p in rows.prompts]
        out = out.append_column(ROW_KEY, pa.array(rows.keys, pa.binary(KEY_BYTES)))
        out = out.append_column(PROMPT, pa.array(texts, pa.string()))
        own = [text or None for text in rows.parameters]
        out = out.append_column(PARAMETERS, pa.array(own, pa.string()))
        out = append_errors(out, errors)
        if self.committed is None:
            return out
        return out.filter(pa.array(~self.committed().contains(as_keys(rows.keys))))


def readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A kept text column with U+FFFD for bytes that are not UTF-8.

    Parquet would take them, but one such value keeps other readers from the whole file.
    """
    if not (pt.is_string(column.type) or pt.is_large_string(column.type)):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.large_binary()).to_pylist()
        texts = [None if value is None else value.decode(errors="replace") for value in raw]
        return pa.chunked_array([texts], column.type)
    return column
