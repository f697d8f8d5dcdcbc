"""The input: its columns checked, its rows scanned once, its pending rows as a Ray dataset.

Why not `ray.data.read_parquet`: it leaves out files without a Parquet ending even when they are
named one by one (Ray 2.60), and shards whose types differ a little (int32 and int64 ids) have to
become one type. The reading itself is pyarrow's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from pipeline.config import RunConfig
from pipeline.key_columns import id_keys
from pipeline.keys import Keys, KeySet, as_keys
from pipeline.prompts import NOT_UNICODE
from pipeline.shards import Shard, find_shards
from pipeline.stages import prepare_rows, values_of

if TYPE_CHECKING:
    from ray.data import Dataset

_CHUNK_ROWS = 16_384
_BATCH_ROWS = 1_024
_THREADS = min(16, 4 * (os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive row groups of one shard: the unit of scanning and of reading."""

    shard: Shard
    row_groups: tuple[int, ...]
    rows: int

    def read(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows in small tables of this schema.

        Raises:
            ValueError: the shard is corrupt, by name.
        """
        with self.shard.open() as file:
            batches = file.iter_batches(
                _BATCH_ROWS, row_groups=list(self.row_groups), columns=schema.names
            )
            try:
                for batch in batches:
                    yield pa.table(batch).select(schema.names).cast(schema)
            except (OSError, pa.ArrowException) as error:
                raise self.shard.unreadable(error) from error


@dataclass(frozen=True, slots=True)
class ScannedChunk:
    """The keys of a chunk's rows, in its order."""

    chunk: Chunk
    ids: Keys
    keys: Keys


@dataclass(frozen=True, slots=True)
class Source:
    """The input of a run: chunks, and one schema for the columns that the run reads."""

    chunks: tuple[Chunk, ...]
    schema: pa.Schema

    def scan(self, config: RunConfig) -> list[ScannedChunk]:
        """Read every row once, to key it and to find what would break the run hours later.

        Raises:
            ValueError: an id that is null, not UTF-8, or given twice; a corrupt shard.
        """
        one = partial(_scan_chunk, schema=self.schema, config=config)
        with ThreadPoolExecutor(_THREADS) as pool:
            scanned = list(pool.map(one, self.chunks))
        repeated = KeySet.of(s.ids for s in scanned).repeated()
        if len(repeated):
            raise ValueError(_describe_repeated(scanned, self.schema, config.id_column, repeated))
        return scanned

    def dataset(self, chunks: Sequence[Chunk]) -> Dataset:
        """The rows of these chunks as a Ray dataset."""
        import ray.data

        from pipeline.datasource import chunk_source

        source = chunk_source(chunks, self.schema)
        # Told otherwise, Ray splits what few tasks read into blocks of single rows.
        dataset: Dataset = ray.data.read_datasource(source, override_num_blocks=len(chunks))
        return dataset


def open_source(config: RunConfig) -> Source:
    """Find the shards and check their columns.

    Raises:
        ValueError: a shard that cannot be read, a column that is missing or of a wrong type.
    """
    shards = find_shards(config.input)
    with ThreadPoolExecutor(_THREADS) as pool:
        opened = list(pool.map(_inspect, shards))
    schemas = [
        pa.schema([_checked_field(shard, schema, name, config) for name in config.columns])
        for shard, schema, _ in opened
    ]
    fields = []
    for i, name in enumerate(config.columns):
        fields.append(_unified(name, [s.field(i) for s in schemas], shards))
    chunks = [c for shard, _, groups in opened for c in _chunks(shard, groups)]
    return Source(tuple(chunks), pa.schema(fields))


def _inspect(shard: Shard) -> tuple[Shard, pa.Schema, list[int]]:
    with shard.open() as file:
        meta = file.metadata
        groups = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        return shard, file.schema_arrow, groups


def _chunks(shard: Shard, groups: list[int]) -> Iterator[Chunk]:
    taken: list[int] = []
    rows = 0
    for i, size in enumerate(groups):
        taken.append(i)
        rows += size
        if rows >= _CHUNK_ROWS or i == len(groups) - 1:
            yield Chunk(shard, tuple(taken), rows)
            taken, rows = [], 0


def _checked_field(shard: Shard, schema: pa.Schema, name: str, config: RunConfig) -> pa.Field:
    places = schema.get_all_field_indices(name)
    if len(places) != 1:
        found = ", ".join(schema.names) or "none"
        problem = "has no column" if not places else "has more than one column"
        raise ValueError(f"the input shard {shard.path} {problem} {name!r}; its columns: {found}")
    kind = schema.field(name).type
    if name in config.prompt.columns:
        _check_prompt_type(shard, name, kind, config)
        # A prompt column is kept as text too, unless it holds messages.
        kind = pa.string() if _is_text(kind) else kind
    if name == config.id_column:
        kind = _id_type(shard, name, kind)
    return pa.field(name, kind)


def _is_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _id_type(shard: Shard, name: str, kind: pa.DataType) -> pa.DataType:
    if _is_text(kind):
        return pa.string()
    if pt.is_integer(kind):
        return pa.uint64() if pt.is_uint64(kind) else pa.int64()
    raise ValueError(
        f"the id column {name!r} is of type {kind} in {shard.path}: it must hold integers or text"
    )


def _check_prompt_type(shard: Shard, name: str, kind: pa.DataType, config: RunConfig) -> None:
    if _is_text(kind) or pt.is_null(kind):
        return
    if config.prompt.template is not None:
        plain = pt.is_primitive(kind) or pt.is_boolean(kind) or pt.is_decimal(kind)
        right = "text, a number, a date or a boolean, to fill the template's field"
    else:
        plain = config.prompt.mode == "chat" and _is_messages(kind)
        right = "text" + (", or a list of {role, content}" if config.prompt.mode == "chat" else "")
    if not plain:
        raise ValueError(
            f"the prompt column {name!r} is of type {kind} in {shard.path}: it must hold {right}"
        )


def _is_messages(kind: pa.DataType) -> bool:
    if not (pt.is_list(kind) or pt.is_large_list(kind)) or not pt.is_struct(kind.value_type):
        return False
    members = {f.name: f.type for f in kind.value_type}
    return all(_is_text(members.get(name, pa.null())) for name in ("role", "content"))


def _unified(name: str, fields: Sequence[pa.Field], shards: Sequence[Shard]) -> pa.Field:
    """One type for a column of all shards: nulls take the others' type, numbers the wider one."""
    whole = pa.schema([fields[0]])
    for field, shard in zip(fields[1:], shards[1:], strict=True):
        try:
            whole = pa.unify_schemas([whole, pa.schema([field])], promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid):
            raise ValueError(
                f"the column {name!r} is of type {field.type} in {shard.path} but "
                f"{whole.field(0).type} before it: it must have one type in all shards"
            ) from None
    return whole.field(0)


def _scan_chunk(chunk: Chunk, schema: pa.Schema, config: RunConfig) -> ScannedChunk:
    name = config.id_column
    ids: list[Keys] = []
    keys: list[bytes] = []
    for table in chunk.read(schema):
        values = values_of(table[name])
        nulls = sum(v is None for v in values)
        if nulls or any(v is NOT_UNICODE for v in values):
            problem = f"{nulls} null values" if nulls else "values that are not UTF-8"
            raise ValueError(
                f"the id column {name!r} has {problem} in {chunk.shard.path}: "
                "every row needs an id of its own"
            )
        ids.append(id_keys(table[name]))
        keys += prepare_rows(table, name, config.prompt).keys
    none = np.empty((0, 2), np.uint64)
    return ScannedChunk(chunk, np.concatenate([none, *ids]), as_keys(keys))


def _describe_repeated(
    scanned: Sequence[ScannedChunk], schema: pa.Schema, name: str, repeated: Keys
) -> str:
    wanted = KeySet.of([repeated[:1]])
    example: object = None
    paths: list[str] = []
    for part in scanned:
        places = np.flatnonzero(wanted.contains(part.ids))
        if len(places):
            paths.append(part.chunk.shard.path)
            ids_only = pa.schema([schema.field(name)])
            column = pa.concat_tables(part.chunk.read(ids_only))[name]
            example = column[int(places[0])].as_py()
    return (
        f"the id column {name!r} has {len(repeated)} ids more than once, {example!r} for one, in "
        f"{' and '.join(dict.fromkeys(paths))}: every row needs an id of its own"
    )
