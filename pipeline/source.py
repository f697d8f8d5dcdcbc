"""The input: its columns checked, its rows scanned once, its pending rows as a Ray dataset.

Why not `ray.data.read_parquet`: it leaves out files without a Parquet ending even when they are
named one by one (Ray 2.60), and shards whose types differ a little (int32 and int64 ids) have to
become one type. The reading itself is pyarrow's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.chunks import Chunk, chunks_of
from pipeline.columns import Unifier, checked_field, own_columns
from pipeline.config import RunConfig
from pipeline.key_columns import id_keys
from pipeline.keys import Keys, KeySet, as_keys
from pipeline.parameters import most_tokens
from pipeline.prepare import prepare_rows, values_of
from pipeline.prompts import NOT_UNICODE
from pipeline.retry import Patience
from pipeline.shards import BadShard, Shard, describe_bad, find_shards
from pipeline.threads import over_threads

if TYPE_CHECKING:
    from ray.data import Dataset

S = TypeVar("S")
T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScannedChunk:
    """The keys of a chunk's rows, in its order; and the most tokens that one asks for itself."""

    chunk: Chunk
    ids: Keys
    keys: Keys
    most_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """The keys of all rows, and the shards that cannot be used."""

    chunks: tuple[ScannedChunk, ...]
    bad: tuple[BadShard, ...] = ()

    @property
    def rows(self) -> int:
        """The rows that can be used."""
        return sum(part.chunk.rows for part in self.chunks)

    def without_lost(self, chunks: Iterable[Chunk]) -> Scan:
        """Without the shards of these chunks that have become unreadable since the scan."""
        shards = list(dict.fromkeys(chunk.shard for chunk in chunks))
        lost = _bad(shards, over_threads(_attempt(_inspect), shards))
        stay = tuple(part for part in self.chunks if part.chunk.shard not in lost)
        return Scan(stay, (*self.bad, *lost.values()))


@dataclass(frozen=True, slots=True)
class Source:
    """The input of a run: chunks, one schema for the columns that the run reads, bad shards."""

    chunks: tuple[Chunk, ...]
    schema: pa.Schema
    bad: tuple[BadShard, ...] = ()

    def scan(self, config: RunConfig) -> Scan:
        """Read every row once, to key it and to find what would break the run hours later.

        Raises:
            ValueError: an id that is null, not UTF-8, or given twice; a corrupt shard, unless bad
                shards are to be left out.
        """
        one = _attempt(partial(_scan_chunk, schema=self.schema, config=config))
        found = over_threads(one, self.chunks)
        # A shard is left out whole, however many of its chunks can be read.
        bad = _bad((chunk.shard for chunk in self.chunks), found)
        _refuse_bad(config, list(bad.values()), len(bad) < len({c.shard for c in self.chunks}))
        good = [s for s in found if isinstance(s, ScannedChunk) and s.chunk.shard not in bad]
        repeated = KeySet.of(s.ids for s in good).repeated()
        if len(repeated):
            raise ValueError(_describe_repeated(good, self.schema, config.id_column, repeated))
        return Scan(tuple(good), (*self.bad, *bad.values()))

    def dataset(self, chunks: Sequence[Chunk], lenient: bool = False) -> Dataset:
        """The rows of these chunks as a Ray dataset; `lenient`: without those that are bad now."""
        import ray.data

        from pipeline.datasource import chunk_source

        source = chunk_source(chunks, self.schema, lenient)
        # Told otherwise, Ray splits what few tasks read into blocks of single rows.
        dataset: Dataset = ray.data.read_datasource(source, override_num_blocks=len(chunks))
        return dataset


def open_source(config: RunConfig) -> Source:
    """Find the shards and check their columns.

    Raises:
        ValueError: a shard that cannot be read, or has a column that is missing or of a wrong
            type, unless bad shards are to be left out; no shard that can be used.
    """
    shards = find_shards(config.input, Patience(config.storage_patience_seconds))
    bad: list[BadShard] = []
    chunks: list[Chunk] = []
    unifier = Unifier(config.columns)
    for found in over_threads(_attempt(_inspect), shards):
        try:
            if isinstance(found, BadShard):
                raise found
            shard, schema, groups = found
            fields = [checked_field(shard, schema, name, config) for name in config.columns]
            unifier.add(shard, pa.schema(fields))
            chunks += chunks_of(shard, schema, groups, own_columns(schema, config))
        except BadShard as problem:
            bad.append(problem)
    _refuse_bad(config, bad, len(bad) < len(shards))
    return Source(tuple(chunks), unifier.schema(), tuple(bad))


def _refuse_bad(config: RunConfig, bad: Sequence[BadShard], any_good: bool) -> None:
    if bad and not config.allow_bad_shards:
        raise ValueError(describe_bad(bad))
    if bad and not any_good:
        raise ValueError(f"input is {config.input!r}: no shard can be used: {describe_bad(bad)}")
    for problem in bad:
        _log.warning("left out: %s", problem)


def _bad(shards: Iterable[Shard], found: Iterable[object]) -> dict[Shard, BadShard]:
    """Which of the shards have a problem; two on two storages may have the same path."""
    pairs = zip(shards, found, strict=True)
    return {shard: problem for shard, problem in pairs if isinstance(problem, BadShard)}


def _attempt(function: Callable[[S], T]) -> Callable[[S], T | BadShard]:
    """The same function with a bad shard as its result, and not as an exception."""

    def attempted(argument: S) -> T | BadShard:
        try:
            return function(argument)
        except BadShard as problem:
            return problem

    return attempted


def _inspect(shard: Shard) -> tuple[Shard, pa.Schema, list[int]]:
    with shard.open() as file:
        meta = file.metadata
        groups = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        return shard, file.schema_arrow, groups


def _scan_chunk(chunk: Chunk, schema: pa.Schema, config: RunConfig) -> ScannedChunk:
    name = config.id_column
    none = np.empty((0, 2), np.uint64)
    ids, keys, tokens = [none], [none], 0
    for table in chunk.read(schema):
        values = values_of(table[name])
        nulls = values.count(None)
        if nulls or NOT_UNICODE in values:
            problem = f"{nulls} null values" if nulls else "values that are not UTF-8"
            raise BadShard(
                chunk.shard.path,
                f"the id column {name!r} has {problem} in {chunk.shard.path}: "
                "every row needs an id of its own",
            )
        ids.append(id_keys(table[name]))
        rows = prepare_rows(table, name, config.prompt, config.row_parameters, config.sampling)
        keys.append(as_keys(rows.keys))
        if "max_tokens" in config.row_parameters:
            tokens = max(tokens, most_tokens(rows.parameters))
    scanned = ScannedChunk(chunk, np.concatenate(ids), np.concatenate(keys), tokens)
    if len(scanned.keys) != chunk.rows:
        raise BadShard(
            chunk.shard.path,
            f"the input shard {chunk.shard.path} is corrupt: its footer counts {chunk.rows} rows "
            f"where {len(scanned.keys)} can be read",
        )
    return scanned


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
