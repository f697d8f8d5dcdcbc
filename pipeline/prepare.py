"""From input columns to prompts and row keys: the stage that the scan and the run share.

It is the one stage that looks at every row of the input, so its loops are kept short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from admg.config import SamplingParams
from pipeline.config import PromptConfig
from pipeline.errors import RowError
from pipeline.keys import KEY_BYTES, KeySet, as_keys, row_keys
from pipeline.parameters import row_parameters
from pipeline.prompts import NOT_UNICODE, NotText, PromptBuilder
from pipeline.retry import one_line
from pipeline.schema import PARAMETERS, PROMPT, ROW_KEY, own_name
from pipeline.stages import append_errors


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """A column's values.

    `NOT_UNICODE` stands where a text is not UTF-8 (Parquet does not check), `NotText` where Python
    has no such value: a date after the year 9999, an unknown time zone.
    """
    try:
        return list(column.to_pylist())
    except _NO_VALUE:
        return [_value_of(scalar) for scalar in column]


_NO_VALUE = (OverflowError, ValueError, LookupError, ImportError)


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return NOT_UNICODE
    except _NO_VALUE as error:
        return NotText(f"has a {scalar.type} that cannot be shown: {one_line(error)}")


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
    own = {name: own_name(name) for name in config.columns if own_name(name) in table.column_names}
    columns = [values_of(table[own.get(name, name)]) for name in config.columns]
    prompts = PromptBuilder(config).build_all(columns)
    ids: list[int | str] = values_of(table[id_column])
    texts = [None if isinstance(prompt, RowError) else prompt for prompt in prompts]
    laws = [""] * len(ids)
    if parameters:
        job = sampling or SamplingParams()
        given = zip(*(values_of(table[name]) for name in parameters), strict=True)
        for i, values in enumerate(given):
            named = dict(zip(parameters, values, strict=True))
            laws[i], error = row_parameters(named, job)
            prompts[i] = error if error and texts[i] is not None else prompts[i]
    return PreparedRows(ids, prompts, laws, row_keys(ids, texts, laws))


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
    """A kept column with U+FFFD for bytes in its texts that are not UTF-8.

    Parquet would take them, but one such value keeps other readers from the whole file.
    """
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return pa.chunked_array([_readable(chunk) for chunk in column.chunks], column.type)
    return column


def _readable(array: pa.Array) -> pa.Array:
    kind = array.type
    if pt.is_string(kind) or pt.is_large_string(kind):
        raw = array.cast(pa.large_binary()).to_pylist()
        return pa.array([v if v is None else v.decode(errors="replace") for v in raw], kind)
    if pt.is_dictionary(kind):
        # Other values may have become equal: they are coded anew.
        values = _readable(array.dictionary).dictionary_encode()
        codes = values.indices.take(array.indices).cast(kind.index_type)
        return pa.DictionaryArray.from_arrays(codes, values.dictionary, ordered=kind.ordered)
    if pt.is_struct(kind):
        members = [_readable(member) for member in array.flatten()]
        return pa.StructArray.from_arrays(members, fields=list(kind), mask=array.is_null())
    if pt.is_fixed_size_list(kind):
        return _readable(array.cast(pa.list_(kind.value_field))).cast(kind)
    if pt.is_map(kind):
        pairs = _readable(array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
        keys, items = pairs.values.flatten()
        return pa.MapArray.from_arrays(pairs.offsets, keys, items, kind, mask=array.is_null())
    if kind.id in _LISTS:
        return _list_of(kind, array, _readable(array.flatten()))
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _readable(array.storage))
    return array


_LISTS = {
    pa.lib.Type_LIST: (pa.ListArray, pa.int32()),
    pa.lib.Type_LARGE_LIST: (pa.LargeListArray, pa.int64()),
    pa.lib.Type_LIST_VIEW: (pa.ListViewArray, pa.int32()),
    pa.lib.Type_LARGE_LIST_VIEW: (pa.LargeListViewArray, pa.int64()),
}


def _list_of(kind: pa.DataType, array: pa.Array, values: pa.Array) -> pa.Array:
    """Lists as long as those of `array`, of other values."""
    make, size = _LISTS[kind.id]
    lengths = pc.list_value_length(array).fill_null(0).to_pylist()
    ends = list(accumulate(lengths, initial=0))
    is_view = pt.is_list_view(kind) or pt.is_large_list_view(kind)
    places = [ends[:-1], lengths] if is_view else [ends]
    offsets = [pa.array(place, size) for place in places]
    return make.from_arrays(*offsets, values, kind, mask=array.is_null())
